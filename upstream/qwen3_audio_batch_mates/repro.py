# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Embeddings of Qwen3's audio encoder depend on the batch. Exit status 0: they do not.

Clips of 41 and of 100 frames (1 s) are encoded alone and together.
"""

import sys
import tempfile

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeAudioEncoder,
    _get_feat_extract_output_lengths,
)


def main() -> int:
    from transformers import Qwen3OmniMoeAudioEncoderConfig

    config = Qwen3OmniMoeAudioEncoderConfig(
        num_mel_bins=16,
        d_model=32,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        downsample_hidden_size=8,
        output_dim=16,
        n_window=50,
        n_window_infer=200,
    )
    torch.manual_seed(0)
    vllm_config = VllmConfig()
    with set_current_vllm_config(vllm_config), tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        encoder = Qwen3OmniMoeAudioEncoder(config).requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        for module in encoder.modules():
            if method := getattr(module, "quant_method", None):
                method.process_weights_after_loading(module)

        def encode(*clips: torch.Tensor) -> torch.Tensor:
            frames = torch.tensor([clip.shape[1] for clip in clips])
            tokens = _get_feat_extract_output_lengths(frames)
            return encoder(torch.cat(clips, 1), frames, tokens)

        short, long = torch.randn(16, 41), torch.randn(16, 100)
        alone, together = encode(short), encode(short, long)
    difference = float((alone - together[: len(alone)]).abs().max())
    largest = float(alone.abs().max())
    print(f"a clip beside a longer one is {difference:.1e} off, of {largest:.1e}")
    return int(difference > 1e-5 * largest)


if __name__ == "__main__":
    sys.exit(main())
