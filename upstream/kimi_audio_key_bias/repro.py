# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Kimi-Audio's encoder keeps uninitialised memory. Exit status 0: it does not.

Whisper has no bias of keys; vLLM's fused layer of queries, keys and values has one. NaN
stands for what the memory happens to hold before the weights are loaded.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import WhisperConfig
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.model_executor.models.kimi_audio import KimiAudioWhisperEncoder


def main() -> int:
    config = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16
    )

    def of(hf_config: WhisperConfig | None, folder: str = "") -> SimpleNamespace:
        return SimpleNamespace(
            model_config=SimpleNamespace(
                model=folder, revision=None, hf_config=hf_config
            ),
            cache_config=None,
            quant_config=None,
            with_hf_config=of,
        )

    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(Path(folder, "whisper-large-v3"))
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        encoder = KimiAudioWhisperEncoder(vllm_config=of(None, folder))
    weights = {}
    for name, parameter in encoder.named_parameters():
        parameter.data.fill_(torch.nan)
        if "qkv_proj" not in name:
            weights[name] = torch.zeros_like(parameter)
            continue
        for part, value in zip("qkv", parameter.detach().chunk(3), strict=True):
            if not name.endswith("bias") or part != "k":
                other = name.replace("qkv_proj", f"{part}_proj")
                weights[other] = torch.zeros_like(value)
    encoder.load_weights(weights.items())
    left = [n for n, p in encoder.named_parameters() if not p.isfinite().all()]
    print(f"not loaded: {', '.join(left) or 'nothing'}")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
