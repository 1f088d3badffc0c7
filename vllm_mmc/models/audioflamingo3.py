# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Audio Flamingo 3 with Qwen2-Audio's encoder: one graph for any number of layers.

A clip is a list of windows of 30 s. Padding of the last window is not computed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models.audioflamingo3 import (
    AudioFlamingo3Encoder,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Inputs,
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_graphs import AudioItems, SupportsAudioGraphs
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import host_lengths, sum_items
from vllm_mmc.models.qwen2_audio import CompiledQwen2AudioEncoder
from vllm_mmc.models.whisper import CLASSES, after_convolutions


class CompiledAudioFlamingo3Encoder(CompiledQwen2AudioEncoder):
    """Qwen2-Audio's encoder, called with windows of 30 s instead of clips."""


class CompiledAudioFlamingo3ForConditionalGeneration(
    SupportsAudioGraphs, AudioFlamingo3ForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        towers={AudioFlamingo3Encoder: CompiledAudioFlamingo3Encoder},
        classes=CLASSES,
    )
    needs = (symbols.WHISPER_WEIGHTS, symbols.FLAMINGO_FEATURES)
    audio_parts = {
        "input_features": ("chunk_counts", 0),
        "feature_attention_mask": ("chunk_counts", 0),
    }

    @property
    def audio_encoder(self) -> CompiledAudioFlamingo3Encoder:
        return self.audio_tower

    def audio_items(self, kwargs: Mapping[str, Any]) -> AudioItems | None:
        if "input_features" not in kwargs:
            return None
        _, mask, windows = symbols.FLAMINGO_FEATURES.of(self)(kwargs)
        frames = host_lengths(mask.sum(-1))
        sequences, encoder = np.asarray(windows, np.int64), self.audio_encoder
        return AudioItems(
            sum_items(encoder.embeddings(frames), sequences),
            encoder.shares(after_convolutions(frames), sequences),
        )

    def audio_buffers(self, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        features, mask, _ = symbols.FLAMINGO_FEATURES.of(self)(kwargs)
        features = features.to(self.audio_encoder.conv1.weight.dtype)
        return self.audio_encoder.graph_buffers(features, mask.sum(-1))

    def encode_audio(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.multi_modal_projector(self.audio_encoder.forward_graph(values))

    def _process_audio_input(
        self, audio_input: AudioFlamingo3Inputs
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        encoder = self.audio_tower
        if audio_input.type == "audio_embeds" or not isinstance(
            encoder, CompiledAudioFlamingo3Encoder
        ):
            return super()._process_audio_input(audio_input)
        normalize = symbols.FLAMINGO_FEATURES.of(self)
        features, mask, windows = normalize(audio_input)
        frames = host_lengths(mask.sum(-1))  # the host waits for the device here only
        features = features.to(encoder.conv1.weight.dtype)
        lengths = sum_items(encoder.embeddings(frames), np.asarray(windows, np.int64))
        x = self.encode_audio(encoder.graph_buffers(features, frames))
        return x.split(lengths.tolist())
