# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Audio Flamingo 3 with Qwen2-Audio's encoder: one graph for any number of layers.

A clip is a list of windows of 30 s. Padding of the last window is not computed.
"""

import numpy as np
import torch
from vllm.model_executor.models.audioflamingo3 import (
    AudioFlamingo3Encoder,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Inputs,
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.interfaces import EncoderPlan, SupportsCompiledEncoder
from vllm_mmc.encoder.packed import host_lengths, starts
from vllm_mmc.models.qwen2_audio import CompiledQwen2AudioEncoder
from vllm_mmc.models.whisper import CLASSES


class CompiledAudioFlamingo3Encoder(CompiledQwen2AudioEncoder):
    """Qwen2-Audio's encoder, called with windows of 30 s instead of clips."""


class CompiledAudioFlamingo3ForConditionalGeneration(
    SupportsCompiledEncoder, AudioFlamingo3ForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        towers={AudioFlamingo3Encoder: CompiledAudioFlamingo3Encoder},
        classes=CLASSES,
    )
    needs = (symbols.WHISPER_WEIGHTS, symbols.FLAMINGO_FEATURES)

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
        x = encoder(features.to(encoder.conv1.weight.dtype), frames)
        lengths = np.add.reduceat(
            encoder.embeddings(frames), starts(np.asarray(windows))
        )
        return self.multi_modal_projector(x).split(lengths.tolist())
