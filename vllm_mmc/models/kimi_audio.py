# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Kimi-Audio with Whisper's encoder, packed: one graph for any number of layers.

Three things differ from stock on purpose. Requests of different lengths can be encoded
together; stock's engine dies of it. Each request of a step hears its own clip; stock
lets only the first one hear. The missing bias of keys is zero; stock leaves that memory
uninitialised.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.kimi_audio import (
    KimiAudioForConditionalGeneration,
    KimiAudioWhisperEncoder,
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_graphs import AudioInput, SupportsAudioGraphs
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Lengths,
    after_convolutions,
    clip_frames,
    host_lengths,
    packed_buffers,
    pad_rows,
    padded_groups,
    starts,
)
from vllm_mmc.models.whisper import CLASSES, PackedWhisperEncoder

# === Audio Encoder === #


class CompiledKimiAudioWhisperEncoder(KimiAudioWhisperEncoder, PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features)` takes log-mel features [num_mel_bins, frames] of each
    clip, of any lengths. It returns [embeddings, 4 * d_model], four tokens side by
    side, clip after clip; a clip has `embeddings(frames)` of them.
    """

    tokens_per_embedding = tokens_per_share = 4

    def forward(self, input_features: Sequence[torch.Tensor]) -> torch.Tensor:
        frames = clip_frames(input_features)
        return self.forward_graph(self.graph_buffers(input_features, frames))

    def graph_buffers(
        self, input_features: Sequence[torch.Tensor], frames: Lengths
    ) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`."""
        frames = host_lengths(frames)
        tokens = after_convolutions(frames)
        return packed_buffers(
            torch.cat(list(input_features), dim=-1),
            self.conv1.weight,
            start=starts(frames),
            frames=frames,
            tokens=tokens,
            # Zeros fill the last group of four.
            rows=padded_groups(tokens, padded_lengths=-(-tokens // 4) * 4),
        )

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = pad_rows(self.layer_norm(self.encode(values)), values["rows"])
        return x.view(-1, 4 * x.shape[1])

    def embeddings(self, frames: Lengths) -> list[int]:
        return self.shares(host_lengths(frames)).tolist()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        # The model has renamed some already.
        weights = ((name.replace(".mlp.", "."), weight) for name, weight in weights)
        return PackedWhisperEncoder.load_weights(self, weights)


class CompiledKimiAudioForConditionalGeneration(
    SupportsAudioGraphs, KimiAudioForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        classes=CLASSES | {KimiAudioWhisperEncoder: CompiledKimiAudioWhisperEncoder}
    )
    needs = (symbols.WHISPER_WEIGHTS,)

    def audio_input(self, values: Any) -> AudioInput | None:
        if (clips := values.get("whisper_input_features")) is None:
            return None
        return AudioInput(clips, clip_frames(clips))

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        # Stock's takes clips of equal length only.
        if (embeddings := self.embed_audio(kwargs)) is None:
            return super().embed_multimodal(**kwargs)
        return self.finite(embeddings, kwargs)

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            # Stock takes the first one for all.
            multimodal_embeddings = [torch.cat(list(multimodal_embeddings))]
        return super().embed_input_ids(
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
