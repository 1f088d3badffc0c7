# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Each layer of Qwen3's audio encoder reads the device. Exit status 0: none does.

Tensors on the device are stood in for by a subclass, which all that is computed from
them inherits. The stand-in for a layer reads `max_seqlen` as the attention op does.
"""

import sys
import tempfile

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.model_executor.models import qwen3_omni_moe_thinker as thinker
from vllm.v1.attention.backends.registry import AttentionBackendEnum

LAYERS = 32


class OnDevice(torch.Tensor):
    """A tensor that counts as one on the device."""


class Layer(torch.nn.Module):
    reads = 0

    def forward(self, x, cu_seqlens, max_seqlen):  # type: ignore[no-untyped-def]
        Layer.reads += isinstance(max_seqlen, OnDevice)
        assert max_seqlen.item() == 26  # two seconds: one window
        return x


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
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        encoder = thinker.Qwen3OmniMoeAudioEncoder(config)
    for module in encoder.modules():
        if method := getattr(module, "quant_method", None):
            method.process_weights_after_loading(module)
    encoder.attn_backend = AttentionBackendEnum.TRITON_ATTN
    encoder.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
    to_device = thinker.async_tensor_h2d
    thinker.async_tensor_h2d = lambda *args, **kwargs: to_device(
        *args, **kwargs
    ).as_subclass(OnDevice)

    frames = torch.tensor([300, 100]).as_subclass(OnDevice)
    tokens = torch.tensor([39, 13]).as_subclass(OnDevice)
    features = torch.randn(16, 400).as_subclass(OnDevice)
    with torch.inference_mode():
        encoder(features, frames, tokens)
    print(f"{LAYERS} layers read a tensor on the device {Layer.reads} times")
    return int(Layer.reads > 0)


if __name__ == "__main__":
    sys.exit(main())
