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
from vllm.model_executor.models import qwen3_omni_moe_thinker as thinker
from vllm.v1.attention.backends.registry import AttentionBackendEnum


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
        encoder = thinker.Qwen3OmniMoeAudioEncoder(config).requires_grad_(False)
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        for module in encoder.modules():
            if method := getattr(module, "quant_method", None):
                method.process_weights_after_loading(module)
        yield encoder
    cleanup_dist_env_and_memory()


class OnDevice(torch.Tensor):
    """Stands in for a tensor on the device; what is computed from it is another one."""


class RecordedLayer(torch.nn.Module):
    def forward(self, x, cu_seqlens, max_seqlen):
        self.seen = max_seqlen
        return x


@pytest.mark.parametrize("frames,longest", [([300, 100], 26), ([41, 7], 6)])
@pytest.mark.parametrize("backend", ["FLASH_ATTN", "TRITON_ATTN", "ROCM_AITER_FA"])
def test_audio_layers_do_not_read_the_device(
    tiny_audio_encoder, monkeypatch, frames, longest, backend
):
    """The attention op calls `max_seqlen.item()`: once per layer, a wait on a GPU."""
    encoder = tiny_audio_encoder
    encoder.attn_backend = AttentionBackendEnum[backend]
    encoder.layers = torch.nn.ModuleList([RecordedLayer()])
    to_device = thinker.async_tensor_h2d
    monkeypatch.setattr(
        thinker,
        "async_tensor_h2d",
        lambda *args, **kwargs: to_device(*args, **kwargs).as_subclass(OnDevice),
    )
    lengths = torch.tensor(frames)
    features = torch.randn(16, sum(frames)).as_subclass(OnDevice)
    encoder(
        features,
        lengths.as_subclass(OnDevice),
        thinker._get_feat_extract_output_lengths(lengths).as_subclass(OnDevice),
    )
    seen = encoder.layers[0].seen
    assert not isinstance(seen, OnDevice)
    assert seen.item() == longest
