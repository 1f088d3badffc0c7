# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Whisper with a compiled encoder: one graph for any number of layers.

Items are packed, [items * positions, hidden], so one item is no special size. All items
have the same length: an item attends to its own padding, as the model was trained to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models.utils import cast_overflow_tensors
from vllm.model_executor.models.whisper import (
    WhisperEncoder,
    WhisperEncoderAttention,
    WhisperEncoderLayer,
    WhisperForConditionalGeneration,
    WhisperMLP,
)

from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor
from vllm_mmc.compat import symbols
from vllm_mmc.compilation.decorators import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm_mmc.encoder.audio_graphs import (
    AudioGraphEncoder,
    AudioInput,
    SupportsAudioGraphs,
)
from vllm_mmc.encoder.audio_layouts import PackedLayout, WindowLayout
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Lengths,
    after_convolutions,
    host_lengths,
    one_item,
)
from vllm_mmc.layers.activation import activate_, gelu_
from vllm_mmc.layers.upcast import upcast_for
from vllm_mmc.sizes.buckets import encoder_forward

# === Audio Encoder === #


class CompiledWhisperEncoderAttention(WhisperEncoderAttention, MMEncoderAttention):
    """vLLM's WhisperEncoderAttention accepts packed [tokens, hidden]; its
    `super().forward()` resolves to our MMEncoderAttention."""


class CompiledWhisperMLP(WhisperMLP):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x, _ = self.fc1(hidden_states)
        x = activate_(self.activation_fn, upcast_for(self.fc2, x))
        return self.fc2(x)[0]


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


BLOCKS = {
    WhisperEncoderLayer: CompiledWhisperEncoderLayer,
    WhisperEncoderAttention: CompiledWhisperEncoderAttention,
    WhisperMLP: CompiledWhisperMLP,
}


class WhisperEncoderBase(AudioGraphEncoder, WhisperEncoder):
    """The layers, over packed tokens. A subclass says what is packed."""

    encoder_plan = EncoderPlan(classes=BLOCKS)

    @encoder_forward
    def forward_packed(
        self,
        x: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: torch.Tensor,
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # [tokens, hidden]
        for layer in self.layers:
            x = layer(x, cu_seqlens, max_seqlen, sequence_lengths)
        return x


class CompiledWhisperEncoder(WindowLayout, WhisperEncoderBase):
    """The encoder, also for serving stacks of your own.

    `forward(input_features)` takes log-mel features of shape [items, num_mel_bins,
    frames], or a sequence of [num_mel_bins, frames] or of batches, all of one length
    up to 2 * max_source_positions, and returns [items, frames / 2, d_model].
    """

    def forward(
        self, input_features: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if not isinstance(input_features, torch.Tensor):
            join = torch.cat if input_features[0].dim() > 2 else torch.stack
            input_features = join(list(input_features))
        x = self.embed(input_features)
        items, positions, _ = x.shape
        sequences = torch.arange(items + 1, dtype=torch.int32, device=x.device)
        x = self.forward_packed(
            # The convolutions return positions innermost.
            x.flatten(0, 1).contiguous(),
            sequences * positions,
            max_seqlen_tensor(positions),
        )
        return self.layer_norm(x).unflatten(0, (items, positions))

    def embed(self, input_features: torch.Tensor) -> torch.Tensor:
        """[items, num_mel_bins, frames] -> [items, frames / 2, d_model], in one call of
        each convolution."""
        x = gelu_(self.conv1(upcast_for(self.conv1, input_features)))
        x = gelu_(self.conv2(x)).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        return x.to(input_features.dtype)

    def graph_buffers(
        self, input_features: Any, lengths: Lengths
    ) -> dict[str, torch.Tensor]:
        if not isinstance(input_features, torch.Tensor):
            input_features = torch.stack(list(input_features))
        return {"input_features": input_features.to(self.conv1.weight.dtype)}

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self(values["input_features"]).flatten(0, 1)

    def run_dummy(self, tokens: int) -> torch.Tensor:
        items, frames = tokens // self.token_multiple, self.token_multiple * 2
        mel = self.conv1.weight.new_zeros(items, self.num_mel_bins, frames)
        return CompiledWhisperEncoder.forward(self, mel)


class PackedWhisperEncoder(PackedLayout, WhisperEncoderBase):
    """Whisper's encoder over sequences of any length, without their padding.

    It also replaces encoders of Hugging Face that have Whisper's layers: it loads their
    parameters, and vLLM's linear layers shard and quantise them. `forward` differs from
    family to family.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(enable_pp=False, **kwargs)

    def encode(
        self,
        values: Mapping[str, torch.Tensor],
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """All but `layer_norm`: [tokens, d_model]. A single token comes twice."""
        frames = values["frames"]
        x = gelu_(self.conv1(upcast_for(self.conv1, frames[None])))
        x = gelu_(self.conv2(x.index_fill_(2, values["gaps"], 0)))
        x = x[0].T[values["tokens"]]
        x = x + self.embed_positions.weight[values["positions"]]
        return self.forward_packed(
            x.to(frames.dtype),
            values["cu_seqlens"],
            values["max_seqlen"],
            sequence_lengths,
        )

    def embeddings(self, frames: Lengths) -> list[int]:
        """The number of embeddings of each clip, from its number of frames."""
        return (after_convolutions(host_lengths(frames)) // 2).tolist()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Names are Hugging Face's, without the encoder's prefix."""
        loaded: set[str] = symbols.WHISPER_WEIGHTS.need()(self, weights)
        return loaded | {"embed_positions.weight"}  # computed if missing

    def run_dummy(self, tokens: int) -> torch.Tensor:
        width = self.layer_norm.weight.shape[0]
        return self.forward_packed(*one_item(tokens, width, self.conv1.weight))


CLASSES = BLOCKS | {WhisperEncoder: CompiledWhisperEncoder}


class CompiledWhisperForConditionalGeneration(
    SupportsAudioGraphs, WhisperForConditionalGeneration
):
    encoder_plan = EncoderPlan(classes=CLASSES)

    @property
    def audio_encoder(self) -> CompiledWhisperEncoder:
        return self.model.encoder

    def audio_input(self, values: Any) -> AudioInput | None:
        positions = self.audio_encoder.max_source_positions
        clips = values["input_features"]
        if any(clip.shape[-1] != 2 * positions for clip in clips):
            return None
        return AudioInput(clips, np.full(len(clips), positions))
