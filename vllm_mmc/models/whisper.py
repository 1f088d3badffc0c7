# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Whisper with a compiled encoder: one graph, whatever the depth.

Items are packed: [items * positions, hidden], so one item is no special size. An item
attends to its own padding, as the model was trained to: all have the same length.
"""

from collections.abc import Sequence

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import cast_overflow_tensors
from vllm.model_executor.models.whisper import (
    WhisperDummyInputsBuilder,
    WhisperEncoder,
    WhisperEncoderAttention,
    WhisperEncoderLayer,
    WhisperForConditionalGeneration,
    WhisperMLP,
    WhisperMultiModalProcessor,
    WhisperProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.compilation.decorators import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm_mmc.compilation.regions import stock_compile_off
from vllm_mmc.compilation.shapes import encoder_forward
from vllm_mmc.layers.activation import activate_, gelu_
from vllm_mmc.models.interfaces import (
    RefusesBadAudio,
    SupportsCompiledEncoder,
    compile_encoder,
)

# === Audio Encoder === #


class CompiledWhisperEncoderAttention(WhisperEncoderAttention, MMEncoderAttention):
    """Theirs takes [tokens, hidden] too and hands it to ours."""


class CompiledWhisperMLP(WhisperMLP):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x, _ = self.fc1(hidden_states)
        return self.fc2(activate_(self.activation_fn, x))[0]


@support_torch_compile(
    dynamic_arg_dims={"hidden_states": 0, "cu_seqlens": 0, "sequence_lengths": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledWhisperEncoderLayer(WhisperEncoderLayer):
    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: torch.Tensor,
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # [tokens, hidden]
        x = hidden_states + self.self_attn(
            self.self_attn_layer_norm(hidden_states),
            cu_seqlens,
            max_seqlen,
            sequence_lengths,
        )
        x = x + self.mlp(self.final_layer_norm(x))
        return cast_overflow_tensors(x)


class CompiledWhisperEncoder(WhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features)` takes log-mel features of shape [items, num_mel_bins,
    frames], or a sequence of [num_mel_bins, frames] or of batches, all of one length
    up to 2 * max_source_positions, and returns [items, frames / 2, d_model].
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        init_in_fp32: bool = False,
        enable_pp: bool = True,
    ) -> None:
        with stock_compile_off(vllm_config):
            super().__init__(
                vllm_config=vllm_config,
                prefix=prefix,
                init_in_fp32=init_in_fp32,
                enable_pp=enable_pp,
            )
        compile_encoder(
            self, ENCODER_REGIONS, vllm_config, step=self.max_source_positions
        )

    def forward(
        self, input_features: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if not isinstance(input_features, torch.Tensor):
            join = torch.cat if input_features[0].dim() > 2 else torch.stack
            input_features = join(list(input_features))
        x = self.embed(input_features)
        items, positions, _ = x.shape
        cu_seqlens = torch.arange(items + 1, dtype=torch.int32, device=x.device)
        x = self.forward_packed(
            # The convolutions leave positions innermost.
            x.flatten(0, 1).contiguous(),
            cu_seqlens * positions,
            torch.tensor(positions, dtype=torch.int32, device="cpu"),
        )
        return x.unflatten(0, (items, positions))

    def embed(self, input_features: torch.Tensor) -> torch.Tensor:
        """[items, num_mel_bins, frames] -> [items, frames / 2, d_model]: one call of
        each convolution, however many items."""
        x = gelu_(self.conv1(input_features))
        x = gelu_(self.conv2(x)).transpose(1, 2)
        return (x + self.embed_positions.weight[: x.shape[1]]).to(x.dtype)

    @encoder_forward
    def forward_packed(
        self, x: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: torch.Tensor
    ) -> torch.Tensor:
        # [tokens, hidden]
        for layer in self.layers:
            x = layer(x, cu_seqlens, max_seqlen)
        return self.layer_norm(x)


ENCODER_REGIONS = {
    WhisperEncoder: CompiledWhisperEncoder,
    WhisperEncoderLayer: CompiledWhisperEncoderLayer,
    WhisperEncoderAttention: CompiledWhisperEncoderAttention,
    WhisperMLP: CompiledWhisperMLP,
}


class CompiledWhisperProcessingInfo(RefusesBadAudio, WhisperProcessingInfo):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    WhisperMultiModalProcessor,
    info=CompiledWhisperProcessingInfo,
    dummy_inputs=WhisperDummyInputsBuilder,
)
class CompiledWhisperForConditionalGeneration(
    SupportsCompiledEncoder, WhisperForConditionalGeneration
):
    encoder_regions = ENCODER_REGIONS

    @property
    def encoder_step(self) -> int:
        positions: int = self.config.max_source_positions
        return positions

    def encoder_tokens(self, embeddings: int) -> int:
        return embeddings // self.encoder_step * self.encoder_step

    def run_dummy_encoder(self, tokens: int) -> None:
        encoder = self.model.encoder
        items = tokens // self.encoder_step
        frames = encoder.max_source_positions * encoder.total_stride
        weight = encoder.conv1.weight
        encoder(weight.new_zeros(items, encoder.num_mel_bins, frames))
