# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""CUDA graphs of audio encoders, by vLLM's protocol `SupportsEncoderCudaGraph`.

vLLM's `EncoderCudaGraphManager` captures the encoder once for each budget of
embeddings, packs the items of a call into budgets, copies an encoder's inputs into the
buffers of a graph and replays the graph. Stock has that for pictures and video only.

The protocol itself is in `graph_protocol.py`, which is imported where graphs are asked
for: vLLM before 0.31 has another form of it.

A graph runs the body that eager runs, `encode_audio`, on buffers of one size. What
follows from lengths is computed on the host, before the body, in eager too
(`graph_buffers`); behind it, a buffer is filled with values that belong to no item.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.encoder.interfaces import CompiledEncoder, SupportsCompiledEncoder
from vllm_mmc.encoder.packed import Ints, Lengths, host_lengths, sum_items

if TYPE_CHECKING:
    from vllm_mmc.encoder.graph_protocol import AudioGraphs

logger = init_logger(__name__)

MAX_SEQLEN = "max_seqlen"
"""An input on the host: a capture reads it, and no replay does."""


class Buffer(NamedTuple):
    """One input of a graph, and how vLLM fills it before a replay.

    Attributes:
        fill: What stands behind the values of a call; None: their last value again.
        dim: The dimension that varies between calls.
        dtype: None: that of the model.
    """

    fill: int | None = 0
    dim: int = 0
    dtype: torch.dtype | None = None

    def __call__(self, buffer: torch.Tensor, values: torch.Tensor) -> None:
        """Copy `values` to the front of `buffer`."""
        used, size = values.shape[self.dim], buffer.shape[self.dim]
        buffer.narrow(self.dim, 0, used).copy_(values)
        rest = buffer.narrow(self.dim, used, size - used)
        if self.fill is None:
            rest.copy_(values.narrow(self.dim, used - 1, 1).expand_as(rest))
        else:
            rest.fill_(self.fill)


INDEX = Buffer(dtype=torch.int64)
CU_SEQLENS = Buffer(fill=None, dtype=torch.int32)
"""Sequences behind those of a call are empty."""


class AudioGraphEncoder(CompiledEncoder):
    """An audio encoder with a body for graphs. It goes before the stock class.

    Sequences are what the encoder is called with: clips, or windows of a clip. A budget
    counts embeddings. Each item takes its share of a budget, which is its number of
    embeddings, or what they would be if nothing of it were left over.

    Attributes:
        graph_inputs: The inputs of the body, all but `max_seqlen`.
    """

    graph_inputs: ClassVar[Mapping[str, Buffer]]

    def graph_buffers(self, features: Any, lengths: Lengths) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`. Lengths are read on the host.

        Args:
            features: Of all sequences, as the encoder's `forward` takes them.
            lengths: Of each sequence, in the encoder's unit.
        """
        raise NotImplementedError

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The body: [embeddings, hidden], and rows of no sequence behind.

        It runs in a capture: nothing in it reads a value of a tensor but that of
        `max_seqlen`, and no tensor comes from the host.
        """
        raise NotImplementedError

    def embeddings(self, lengths: Lengths) -> list[int]:
        """The number of embeddings of each sequence."""
        raise NotImplementedError

    def shares(self, lengths: Ints, sequences: Ints | None = None) -> Ints:
        """What each item takes of a budget.

        Args:
            lengths: Of each sequence.
            sequences: How many each item has; by default 1.
        """
        raise NotImplementedError

    @property
    def least_share(self) -> int:
        """The smallest budget that is worth a graph."""
        raise NotImplementedError

    def graph_tokens(self, budget: int) -> int:
        """The packed tokens of a graph."""
        return budget

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        """The shapes of `graph_inputs` that hold any items of these shares.

        Args:
            budget: The largest sum of shares.
            items: The largest number of items.
        """
        raise NotImplementedError

    @property
    def graph_max_seqlen(self) -> int | None:
        """No sequence is longer, in tokens; None: `max_seqlen` is no input."""
        return None


class AudioInput(NamedTuple):
    """The audio of a call.

    Attributes:
        features: Of all sequences, as the encoder takes them.
        lengths: [sequences] int64: of each sequence, in the encoder's unit.
        sequences: [items] int64: how many each item has; None: 1.
    """

    features: Any
    lengths: Ints
    sequences: Ints | None = None


class SupportsAudioGraphs(SupportsCompiledEncoder):
    """A model whose audio encoder can run in CUDA graphs, before the stock class.

    With `compile_mm_encoder` and `cudagraph_mm_encoder` an instance has vLLM's protocol
    `SupportsEncoderCudaGraph`; otherwise it has it if stock has.
    """

    audio_parts: ClassVar[Mapping[str, tuple[str, int]]] = {}
    """Arguments in which items lie end to end: the argument with the size of each item,
    and the dimension. In all others there is one entry for each item."""
    encoder_graphs: "AudioGraphs | None" = None
    """vLLM's protocol, of this instance; None if the encoder runs in no graph."""

    @property
    def audio_encoder(self) -> AudioGraphEncoder:
        return self.audio_tower

    def audio_input(self, values: Any) -> AudioInput | None:
        """What the audio encoder takes.

        Args:
            values: The arguments of `embed_multimodal`, or what stock's parser makes of
                them.

        Returns:
            None if they are embeddings already, or no input of a graph.
        """
        raise NotImplementedError

    def audio_embeddings(self, audio: AudioInput) -> Ints:
        """[items] int64: the number of embeddings of each item."""
        embeddings = np.array(self.audio_encoder.embeddings(audio.lengths), np.int64)
        if audio.sequences is None:
            return embeddings
        return sum_items(embeddings, audio.sequences)

    def encode_audio(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The body, with the projector behind it: [embeddings, hidden]."""
        x = self.audio_encoder.forward_graph(values)
        projector = getattr(self, "multi_modal_projector", None)
        return x if projector is None else projector(x)

    def embed_audio(self, values: Any) -> tuple[torch.Tensor, ...] | None:
        """By the body, eager: [embeddings, hidden] of each item.

        Returns:
            None if the encoder is not ours, or not for these values (`audio_input`).
        """
        encoder = self.audio_encoder
        if not isinstance(encoder, AudioGraphEncoder):
            return None
        if (audio := self.audio_input(values)) is None:
            return None
        x = self.encode_audio(encoder.graph_buffers(audio.features, audio.lengths))
        return x.split(self.audio_embeddings(audio).tolist())

    def select_audio(
        self, kwargs: Mapping[str, Any], indices: list[int]
    ) -> dict[str, Any]:
        """The arguments of `embed_multimodal` for these items only."""
        selected = {}
        for name, value in kwargs.items():
            sizes, dim = self.audio_parts.get(name, ("", 0))
            # vLLM keeps a list where items cannot be joined, and its Rust frontend
            # makes a padded batch of what else is [num_mel_bins, frames].
            joined = isinstance(value, torch.Tensor) and (dim, value.dim()) != (1, 3)
            if joined and sizes in kwargs:
                lengths = host_lengths(kwargs[sizes])
                selected[name] = select_parts(value, lengths, indices, dim)
            else:
                selected[name] = select(value, indices)
        return selected

    def vision_graphs(self) -> Any:
        """`SupportsEncoderCudaGraph` for the vision encoder; None: it runs eager."""
        return None

    def _install(self, names: Iterable[str], vllm_config: VllmConfig) -> None:
        super()._install(names, vllm_config)
        config = vllm_config.compilation_config
        if config.cudagraph_mm_encoder and self.encoder_graphs is None:
            self._enable_graphs(vllm_config)

    def _enable_graphs(self, vllm_config: VllmConfig) -> None:
        try:
            encoder = self.audio_encoder
        except AttributeError:  # this tower is built later, or not on this rank
            return
        if not isinstance(encoder, AudioGraphEncoder):
            return
        if (reason := _why_no_graph(encoder)) is not None:
            logger.warning_once(
                "%s: the encoder runs in no CUDA graph: %s.",
                type(self).__name__,
                reason,
            )
            return
        from vllm_mmc.encoder.graph_protocol import AudioGraphs

        self.encoder_graphs = AudioGraphs(self, vllm_config)
        for name in vars(AudioGraphs):
            if not name.startswith("_"):
                setattr(self, name, getattr(self.encoder_graphs, name))

    def warm_up_sizes(self, encoder: CompiledEncoder) -> list[int]:
        sizes = super().warm_up_sizes(encoder)
        if self.encoder_graphs is None or encoder is not self.audio_encoder:
            return sizes
        return encoder.encoder_shapes.with_ranges_of(
            sizes, map(encoder.graph_tokens, self.encoder_graphs._budgets())
        )


class SupportsPackedAudio(SupportsAudioGraphs):
    """A model of which eager, too, runs `encode_audio`."""

    def _process_audio_input(self, audio_input: Any) -> Any:
        embeddings = self.embed_audio(audio_input)
        if embeddings is None:
            return super()._process_audio_input(audio_input)
        return embeddings


def select(value: Any, indices: list[int]) -> Any:
    """The items of these indices; `value` is a tensor or a list with one for each."""
    if indices == list(range(len(value))):
        return value
    if isinstance(value, torch.Tensor):
        parts = [value[i : i + 1] for i in indices]
        return torch.cat(parts) if parts else value[:0]
    return [value[i] for i in indices]


def select_parts(
    x: torch.Tensor, sizes: Ints, indices: list[int], dim: int = 0
) -> torch.Tensor:
    """The parts of these indices; items have so many rows of dimension `dim` each."""
    if indices == list(range(len(sizes))):
        return x
    parts = x.split(sizes.tolist(), dim)
    chosen = [parts[i] for i in indices]
    return torch.cat(chosen, dim) if chosen else x.narrow(dim, 0, 0)


def _why_no_graph(encoder: AudioGraphEncoder) -> str | None:
    backends = {
        module.attn_backend
        for module in encoder.modules()
        if isinstance(module, MMEncoderAttention)
    }
    if current_platform.is_cuda_alike() and AttentionBackendEnum.TORCH_SDPA in backends:
        return "the attention backend TORCH_SDPA waits for the device"
    return None
