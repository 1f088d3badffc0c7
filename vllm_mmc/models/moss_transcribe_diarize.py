# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""MOSS-Transcribe-Diarize with Whisper's encoder: one graph for all layers."""

import torch
from vllm.model_executor.models.moss_transcribe_diarize import (
    MossTranscribeDiarizeForConditionalGeneration,
    MossTranscribeDiarizeWhisperEncoder,
)

from vllm_mmc.encoder.interfaces import EncoderPlan, SupportsCompiledEncoder
from vllm_mmc.encoder.packed import host_lengths, item_and_offset, on_device
from vllm_mmc.models.whisper import CLASSES, CompiledWhisperEncoder


class CompiledMossWhisperEncoder(
    MossTranscribeDiarizeWhisperEncoder, CompiledWhisperEncoder
):
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
        x = CompiledWhisperEncoder.forward(self, input_features.to(self.conv1.weight))
        window, position = item_and_offset(
            host_lengths(audio_feature_lengths) * self.audio_merge_size
        )
        kept = on_device(window * x.shape[1] + position, x.device)
        return x.flatten(0, 1)[None, kept]

    def max_packed_tokens(self, embeddings: int) -> int:
        return 0  # unknown: a window of one embedding is encoded whole


class CompiledMossTranscribeDiarizeForConditionalGeneration(
    SupportsCompiledEncoder, MossTranscribeDiarizeForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        classes=CLASSES
        | {MossTranscribeDiarizeWhisperEncoder: CompiledMossWhisperEncoder}
    )
