# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""MOSS-Transcribe-Diarize with Whisper's encoder: one graph for all layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models.moss_transcribe_diarize import (
    MossTranscribeDiarizeForConditionalGeneration,
    MossTranscribeDiarizeWhisperEncoder,
)

from vllm_mmc.encoder.audio_graphs import INDEX, AudioInput, SupportsAudioGraphs
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Ints,
    Lengths,
    after_convolutions,
    host_lengths,
    item_and_offset,
    on_device,
)
from vllm_mmc.models.whisper import CLASSES, CompiledWhisperEncoder


class CompiledMossWhisperEncoder(
    MossTranscribeDiarizeWhisperEncoder, CompiledWhisperEncoder
):
    graph_inputs = {**CompiledWhisperEncoder.graph_inputs, "rows": INDEX}

    def forward(
        self,
        input_features: torch.Tensor,
        audio_feature_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[windows, num_mel_bins, frames] and the number of embeddings of each window
        -> [1, tokens, d_model], without the tokens of padding."""
        assert audio_feature_lengths is not None
        if input_features.numel() == 0:
            return input_features.new_empty((1, 0, self.conv1.out_channels))
        values = self.graph_buffers(input_features, audio_feature_lengths)
        return self.forward_graph(values)[None]

    def graph_buffers(
        self, input_features: torch.Tensor, audio_feature_lengths: Lengths
    ) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`."""
        window, position = item_and_offset(
            host_lengths(audio_feature_lengths) * self.audio_merge_size
        )
        positions = after_convolutions(input_features.shape[-1])
        rows = on_device(window * positions + position, input_features.device)
        return {"input_features": input_features.to(self.conv1.weight), "rows": rows}

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[tokens, d_model], without the tokens of padding."""
        x = CompiledWhisperEncoder.forward(self, values["input_features"])
        return x.flatten(0, 1)[values["rows"]]

    def shares(self, lengths: Ints, sequences: Ints | None = None) -> Ints:
        windows = np.ones_like(lengths) if sequences is None else sequences
        return windows * self.least_share

    @property
    def least_share(self) -> int:
        return -(-self.max_source_positions // self.audio_merge_size)  # a window

    def graph_tokens(self, budget: int) -> int:
        return super().graph_tokens(budget * self.audio_merge_size)

    def graph_sizes(self, budget: int, items: int) -> dict[str, tuple[int, ...]]:
        sizes = super().graph_sizes(budget * self.audio_merge_size, items)
        return sizes | {"rows": (self.graph_tokens(budget),)}

    def max_packed_tokens(self, embeddings: int) -> int:
        return 0  # unknown: a window of one embedding is encoded whole


class CompiledMossTranscribeDiarizeForConditionalGeneration(
    SupportsAudioGraphs, MossTranscribeDiarizeForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        classes=CLASSES
        | {MossTranscribeDiarizeWhisperEncoder: CompiledMossWhisperEncoder}
    )
    audio_parts = {
        "input_features": ("audio_chunk_counts", 0),
        "audio_feature_lengths": ("audio_chunk_counts", 0),
    }

    @property
    def audio_encoder(self) -> CompiledMossWhisperEncoder:
        return self.whisper_encoder

    def audio_input(self, values: Any) -> AudioInput | None:
        features = values.get("input_features")
        windows = values.get("audio_chunk_counts")
        frames = 2 * self.audio_encoder.max_source_positions
        if features is None or windows is None or features.shape[-1] != frames:
            return None
        lengths = values["audio_feature_lengths"]
        return AudioInput(features, host_lengths(lengths), host_lengths(windows))

    def encode_audio(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = self.audio_encoder.forward_graph(values).to(self.dtype)
        merged = x.unflatten(0, (-1, self.audio_encoder.audio_merge_size)).flatten(1)
        return self.vq_adaptor(merged[None])[0]
