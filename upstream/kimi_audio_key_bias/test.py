# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/model_executor/test_kimi_audio.py."""

from types import SimpleNamespace

import torch
from transformers import WhisperConfig
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.model_executor.models.kimi_audio import KimiAudioWhisperEncoder


def test_the_missing_bias_of_keys_is_zero(tmp_path):
    """Whisper has none; what the fused layer has must not stay uninitialised."""
    config = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16
    )

    def vllm_config(hf_config):
        return SimpleNamespace(
            model_config=SimpleNamespace(
                model=str(tmp_path), revision=None, hf_config=hf_config
            ),
            cache_config=None,
            quant_config=None,
            with_hf_config=vllm_config,
        )

    with set_current_vllm_config(VllmConfig()):
        config.save_pretrained(tmp_path / "whisper-large-v3")
        init_distributed_environment(1, 0, f"file://{tmp_path}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        encoder = KimiAudioWhisperEncoder(vllm_config=vllm_config(None))
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
    cleanup_dist_env_and_memory()
    for name, parameter in encoder.named_parameters():
        assert parameter.isfinite().all(), name
