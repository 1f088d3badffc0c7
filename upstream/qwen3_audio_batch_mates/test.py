# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/model_executor/test_qwen3_omni.py."""

import pytest
import torch
from transformers import Qwen3OmniMoeAudioEncoderConfig
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeAudioEncoder,
    _get_feat_extract_output_lengths,
)


@pytest.fixture
def tiny_audio_encoder(tmp_path):
    """As in Qwen3-ASR and Qwen3-Omni: chunks of 100 frames, windows of two chunks."""
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
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{tmp_path}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        encoder = Qwen3OmniMoeAudioEncoder(config).requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        for module in encoder.modules():
            if method := getattr(module, "quant_method", None):
                method.process_weights_after_loading(module)
        yield encoder
    cleanup_dist_env_and_memory()


@pytest.mark.parametrize("others", [(50,), (100,), (7, 230)])
def test_audio_encoder_does_not_depend_on_the_batch(tiny_audio_encoder, others):
    """The convolutions see beyond the end of a short chunk: always the same zeros."""

    def encode(*clips: torch.Tensor) -> torch.Tensor:
        frames = torch.tensor([clip.shape[1] for clip in clips])
        tokens = _get_feat_extract_output_lengths(frames)
        return tiny_audio_encoder(torch.cat(clips, 1), frames, tokens)

    clip = torch.randn(16, 41)
    alone = encode(clip)
    together = encode(clip, *(torch.randn(16, frames) for frames in others))
    assert len(alone) == 6
    torch.testing.assert_close(together[: len(alone)], alone, rtol=1e-4, atol=1e-4)
