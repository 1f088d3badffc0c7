# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Whisper with a compiled encoder: one graph for any number of layers.

Items are packed, [items * positions, hidden], so one item is no special size. All items
have the same length: an item attends to its own padding, as the model was trained to.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
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
from vllm_mmc.encoder.interfaces import (
    CompiledEncoder,
    EncoderPlan,
    SupportsCompiledEncoder,
)
from vllm_mmc.encoder.packed import (
    Ints,
    Lengths,
    cu_seqlens,
    host_lengths,
    item_and_offset,
    on_device,
    one_item,
    starts,
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


class WhisperEncoderBase(CompiledEncoder, WhisperEncoder):
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


class CompiledWhisperEncoder(WhisperEncoderBase):
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

    @property
    def token_multiple(self) -> int:
        return self.max_source_positions

    def max_packed_tokens(self, embeddings: int) -> int:
        return embeddings // self.token_multiple * self.token_multiple

    def run_dummy(self, tokens: int) -> torch.Tensor:
        items, frames = tokens // self.token_multiple, self.token_multiple * 2
        mel = self.conv1.weight.new_zeros(items, self.num_mel_bins, frames)
        return CompiledWhisperEncoder.forward(self, mel)


class PackedAudioMetadata(NamedTuple):
    """Tensors that depend on the lengths of the sequences only.

    Attributes:
        columns: [columns] int64: the frame of each input column of the convolutions.
            The index after the last frame means a column of zeros.
        gaps: [gaps] int64: the columns of zeros.
        tokens: [tokens] int64: the output columns of the convolutions that are kept.
        positions: [tokens] int64: the offset of each token in its sequence.
        cu_seqlens: [sequences + 1] int32: where sequences start and end.
        max_seqlen: the longest sequence, int32, on the host.
    """

    columns: torch.Tensor
    gaps: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: torch.Tensor


class PackedWhisperEncoder(WhisperEncoderBase):
    """Whisper's encoder over sequences of any length, without their padding.

    It also replaces encoders of Hugging Face that have Whisper's layers: it loads their
    parameters, and vLLM's linear layers shard and quantise them. `forward` differs from
    family to family.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(enable_pp=False, **kwargs)

    def prepare_encoder_metadata(
        self, start: Ints, frames: Ints, tokens: Ints
    ) -> PackedAudioMetadata:
        """Computed on the host; each tensor is one copy to the device.

        Args:
            start: the first frame of each sequence.
            frames: the number of frames of each sequence that the convolutions see,
                with zeros before and after them.
            tokens: the number of tokens of each sequence that are kept.
        """
        # A gap has one column or more. Sections are even, because the stride is 2.
        sections = (frames // 2 + 1) * 2
        sequence, column = item_and_offset(sections)
        gap = column >= frames[sequence]
        columns = np.where(gap, -1, start[sequence] + column)
        sequence, position = item_and_offset(tokens)
        kept = starts(sections)[sequence] // 2 + position
        if len(kept) == 1:  # graphs are made for two tokens or more
            kept, position, tokens = (a.repeat(2) for a in (kept, position, tokens))
        device = self.conv1.weight.device
        return PackedAudioMetadata(
            columns=on_device(columns, device),
            gaps=on_device(np.flatnonzero(gap), device),
            tokens=on_device(kept, device),
            positions=on_device(position, device),
            cu_seqlens=on_device(cu_seqlens(tokens), device, torch.int32),
            max_seqlen=max_seqlen_tensor(int(tokens.max(initial=0))),
        )

    def embed_packed(
        self, features: torch.Tensor, metadata: PackedAudioMetadata
    ) -> torch.Tensor:
        """[num_mel_bins, frames] -> [tokens, d_model].

        The sequences are side by side. In the gaps between them, the convolutions see
        the zeros that they would pad with.
        """
        x = F.pad(features, (0, 1))[None, :, metadata.columns]
        x = gelu_(self.conv1(upcast_for(self.conv1, x))).index_fill_(
            2, metadata.gaps, 0
        )
        x = gelu_(self.conv2(x))[0].T[metadata.tokens]
        x = x + self.embed_positions.weight[metadata.positions]
        return x.to(features.dtype)

    def encode(
        self, features: torch.Tensor, *, start: Ints, frames: Ints, tokens: Ints
    ) -> torch.Tensor:
        """All but `layer_norm`: [num_mel_bins, frames] -> [tokens, d_model].

        Arguments are those of `prepare_encoder_metadata`. A single token comes twice.
        """
        metadata = self.prepare_encoder_metadata(start, frames, tokens)
        x = self.embed_packed(features, metadata)
        return self.forward_packed(x, metadata.cu_seqlens, metadata.max_seqlen)

    @staticmethod
    def embeddings(frames: Lengths) -> list[int]:
        """The number of embeddings of each clip, from its number of frames."""
        return (after_convolutions(host_lengths(frames)) // 2).tolist()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Names are Hugging Face's, without the encoder's prefix."""
        loaded: set[str] = symbols.WHISPER_WEIGHTS.need()(self, weights)
        return loaded | {"embed_positions.weight"}  # computed if missing

    tokens_per_embedding = 3
    """Upper bound: 2 tokens per embedding, plus one unpaired last token."""

    def max_packed_tokens(self, embeddings: int) -> int:
        return embeddings * self.tokens_per_embedding

    def run_dummy(self, tokens: int) -> torch.Tensor:
        width = self.layer_norm.weight.shape[0]
        return self.forward_packed(*one_item(tokens, width, self.conv1.weight))


def after_convolutions(frames: Ints) -> Ints:
    """Tokens after the convolutions, of which the second has stride 2."""
    return (frames - 1) // 2 + 1


CLASSES = BLOCKS | {WhisperEncoder: CompiledWhisperEncoder}


class CompiledWhisperForConditionalGeneration(
    SupportsCompiledEncoder, WhisperForConditionalGeneration
):
    encoder_plan = EncoderPlan(classes=CLASSES)
