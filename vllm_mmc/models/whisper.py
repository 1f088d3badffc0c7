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
from vllm_mmc.encoder.audio_graphs import (
    CU_SEQLENS,
    INDEX,
    AudioGraphEncoder,
    AudioItems,
    Buffer,
    SupportsAudioGraphs,
)
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Ints,
    Lengths,
    cu_seqlens,
    host_lengths,
    item_and_offset,
    on_device,
    one_item,
    starts,
    sum_items,
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

    graph_inputs = {"input_features": Buffer()}

    @property
    def least_share(self) -> int:
        return self.max_source_positions

    def graph_tokens(self, budget: int) -> int:
        positions = self.max_source_positions
        return max(budget // positions, 1) * positions

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        positions = self.max_source_positions
        held = self.graph_tokens(budget) // positions
        return {"input_features": (held, self.num_mel_bins, 2 * positions)}

    @property
    def token_multiple(self) -> int:
        return self.max_source_positions

    def max_packed_tokens(self, embeddings: int) -> int:
        return embeddings // self.token_multiple * self.token_multiple

    def run_dummy(self, tokens: int) -> torch.Tensor:
        items, frames = tokens // self.token_multiple, self.token_multiple * 2
        mel = self.conv1.weight.new_zeros(items, self.num_mel_bins, frames)
        return CompiledWhisperEncoder.forward(self, mel)


class PackedWhisperEncoder(WhisperEncoderBase):
    """Whisper's encoder over sequences of any length, without their padding.

    It also replaces encoders of Hugging Face that have Whisper's layers: it loads their
    parameters, and vLLM's linear layers shard and quantise them. `forward` differs from
    family to family.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(enable_pp=False, **kwargs)

    def packed_buffers(
        self,
        features: torch.Tensor,
        *,
        start: Ints,
        frames: Ints,
        tokens: Ints,
        rows: Ints | None = None,
    ) -> dict[str, torch.Tensor]:
        """The inputs of `encode`, from lengths on the host; one copy each.

        Args:
            features: [num_mel_bins, frames].
            start: the first frame of each sequence.
            frames: the number of frames of each sequence that the convolutions see,
                with zeros before and after them.
            tokens: the number of tokens of each sequence that are kept.
            rows: indices that the body of a family gathers.

        Returns:
            frames: [num_mel_bins, columns]: sequences side by side. In the gaps between
                them, the convolutions see the zeros that they would pad with.
            gaps: [gaps] int64: the columns of zeros.
            tokens: [tokens] int64: the columns that are kept, after the convolutions.
            positions: [tokens] int64: the offset of each token in its sequence.
            cu_seqlens: [sequences + 1] int32: where sequences start and end.
            max_seqlen: the longest sequence, int32, on the host.
            rows: [rows] int64, if given.
        """
        # A gap has one column or more. Sections are even, because the stride is 2.
        sections = (frames // 2 + 1) * 2
        sequence, column = item_and_offset(sections)
        gap = column >= frames[sequence]
        columns = np.where(gap, -1, start[sequence] + column)
        sequence, position = item_and_offset(tokens)
        kept = starts(sections)[sequence] // 2 + position
        if len(kept) == 1:  # graphs are made for two tokens or more
            kept, position = kept.repeat(2), position.repeat(2)
            tokens = np.append(tokens, 1)
        device = self.conv1.weight.device
        values = {
            "frames": F.pad(features, (0, 1))[:, on_device(columns, device)],
            "gaps": on_device(np.flatnonzero(gap), device),
            "tokens": on_device(kept, device),
            "positions": on_device(position, device),
            "cu_seqlens": on_device(cu_seqlens(tokens), device, torch.int32),
            "max_seqlen": max_seqlen_tensor(int(tokens.max(initial=0))),
        }
        return values if rows is None else values | {"rows": on_device(rows, device)}

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

    graph_inputs = {
        "frames": Buffer(dim=1),
        "gaps": Buffer(fill=-1, dtype=torch.int64),  # the last column is always one
        "tokens": INDEX,
        "positions": INDEX,
        "cu_seqlens": CU_SEQLENS,
        "rows": Buffer(fill=-1, dtype=torch.int64),
    }
    tokens_per_share = 2
    """How many tokens become an embedding."""

    @property
    def graph_max_seqlen(self) -> int:
        return self.max_source_positions

    @property
    def least_share(self) -> int:
        return TOKENS_PER_SECOND // self.tokens_per_share

    def graph_tokens(self, budget: int) -> int:
        return budget * self.tokens_per_share

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        tokens = self.graph_tokens(budget)
        sequences = budget // self._largest_share + items
        # Of a sequence the convolutions see two frames more than twice its tokens, and
        # behind it up to two columns of zeros.
        columns = 2 * tokens + 4 * sequences
        return {
            "frames": (self.num_mel_bins, columns),
            "gaps": (2 * sequences,),
            "tokens": (tokens,),
            "positions": (tokens,),
            "cu_seqlens": (sequences + 2,),  # a single token comes twice
            "rows": (tokens,),
        }

    @property
    def _largest_share(self) -> int:
        return self.graph_max_seqlen // self.tokens_per_share

    def shares(self, tokens: Ints, sequences: Ints | None = None) -> Ints:
        """What each item takes of a budget.

        Args:
            tokens: of each sequence.
            sequences: of each item; by default 1.
        """
        each = -(-tokens // self.tokens_per_share)
        if sequences is None:
            return each
        # All sequences but the last are of full length, or count as if they were.
        full = (sequences - 1) * self._largest_share + 1
        return np.maximum(sum_items(each, sequences), full)

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


TOKENS_PER_SECOND = 50


def after_convolutions(frames: Ints) -> Ints:
    """Tokens after the convolutions, of which the second has stride 2."""
    return (frames - 1) // 2 + 1


CLASSES = BLOCKS | {WhisperEncoder: CompiledWhisperEncoder}


class CompiledWhisperForConditionalGeneration(
    SupportsAudioGraphs, WhisperForConditionalGeneration
):
    encoder_plan = EncoderPlan(classes=CLASSES)

    @property
    def audio_encoder(self) -> CompiledWhisperEncoder:
        return self.model.encoder

    def audio_items(self, kwargs: Mapping[str, Any]) -> AudioItems | None:
        positions = self.audio_encoder.max_source_positions
        items = kwargs["input_features"]
        if any(item.shape[-1] != 2 * positions for item in items):
            return None
        each = np.full(len(items), positions)
        return AudioItems(each, each)

    def audio_buffers(self, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        features = kwargs["input_features"]
        if not isinstance(features, torch.Tensor):
            features = torch.stack(features)
        return {"input_features": features.to(self.dtype)}

    def encode_audio(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.audio_encoder(values["input_features"]).flatten(0, 1)
