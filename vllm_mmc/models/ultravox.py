# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ultravox with Whisper's encoder, packed: one graph for any number of layers.

One thing differs from stock on purpose. Stock pads the chunks of a batch to the
longest, and the projector stacks encoded padding into the last embedding of a chunk.
This encoder returns zeros for padding, so a chunk does not depend on its batch.
"""

import numpy as np
import torch
from vllm.model_executor.models.ultravox import (
    UltravoxModel,
    UltravoxWhisperEncoder,
)

from vllm_mmc.encoder.interfaces import EncoderPlan, SupportsCompiledEncoder
from vllm_mmc.encoder.packed import Lengths, host_lengths, pad_items
from vllm_mmc.models.whisper import (
    CLASSES,
    PackedWhisperEncoder,
    after_convolutions,
)


class CompiledUltravoxWhisperEncoder(UltravoxWhisperEncoder, PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, audio_lens)` takes log-mel features [chunks, num_mel_bins,
    frames] and the number of speech frames of each chunk, best on the host. It returns
    [chunks, frames / 2, d_model], with zeros after the speech.
    """

    tokens_per_embedding = 8

    def forward(
        self, input_features: torch.Tensor, audio_lens: Lengths
    ) -> torch.Tensor:
        chunks, _, frames = input_features.shape
        if frames > self.max_context_length:
            raise ValueError(
                f"input_features must have at most {self.max_context_length} frames "
                f"per chunk, found {frames}"
            )
        speech = host_lengths(audio_lens)
        tokens = after_convolutions(speech)
        x = self.encode(
            input_features.transpose(0, 1).flatten(1),
            start=np.arange(chunks) * frames,
            frames=speech,
            tokens=tokens,
        )
        padded_lengths = after_convolutions(np.full(chunks, frames))
        x = pad_items(self.layer_norm(x), tokens, padded_lengths)
        return x.unflatten(0, (chunks, -1))


class CompiledUltravoxModel(SupportsCompiledEncoder, UltravoxModel):
    # The projector may have Whisper's layers too, and run them on one token.
    encoder_plan = EncoderPlan(
        classes=CLASSES | {UltravoxWhisperEncoder: CompiledUltravoxWhisperEncoder},
        roots=("audio_tower",),
    )
