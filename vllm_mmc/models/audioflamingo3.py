# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Audio Flamingo 3 with Qwen2-Audio's encoder: one graph for any number of layers.

A clip is a list of windows of 30 s. Padding of the last window is not computed.
"""

from typing import Any

import numpy as np
from vllm.model_executor.models.audioflamingo3 import (
    AudioFlamingo3Encoder,
    AudioFlamingo3ForConditionalGeneration,
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_graphs import AudioInput, SupportsPackedAudio
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import host_lengths
from vllm_mmc.models.qwen2_audio import CompiledQwen2AudioEncoder
from vllm_mmc.models.whisper import CLASSES


class CompiledAudioFlamingo3Encoder(CompiledQwen2AudioEncoder):
    """Qwen2-Audio's encoder, called with windows of 30 s instead of clips."""


class CompiledAudioFlamingo3ForConditionalGeneration(
    SupportsPackedAudio, AudioFlamingo3ForConditionalGeneration
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

    def audio_input(self, values: Any) -> AudioInput | None:
        if values.get("input_features") is None:
            return None
        features, mask, windows = symbols.FLAMINGO_FEATURES.of(self)(values)
        frames = host_lengths(mask.sum(-1))  # the host waits for the device here only
        return AudioInput(features, frames, np.asarray(windows, np.int64))
