# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2-Audio with a native, packed encoder: one graph for any number of layers.

Stock runs Hugging Face's encoder over 30 s of every clip, with a dense mask. This
encoder does not compute the frames that the mask hides.
"""

import numpy as np
import torch
from transformers.models.qwen2_audio import Qwen2AudioEncoder
from vllm.model_executor.models.qwen2_audio import (
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioInputs,
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.interfaces import EncoderPlan, SupportsCompiledEncoder
from vllm_mmc.encoder.packed import Lengths, host_lengths, mean_pool
from vllm_mmc.models.whisper import (
    CLASSES,
    PackedWhisperEncoder,
    after_convolutions,
)

# === Audio Encoder === #


class CompiledQwen2AudioEncoder(PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, frames)` takes log-mel features [clips, num_mel_bins, 3000]
    and the number of speech frames of each clip, best on the host. It returns
    [embeddings, d_model], clip after clip; a clip has `embeddings(frames)` of them.
    """

    def forward(self, input_features: torch.Tensor, frames: Lengths) -> torch.Tensor:
        clips, _, window = input_features.shape
        speech = host_lengths(frames)
        tokens = after_convolutions(speech)
        x = self.encode(
            input_features.transpose(0, 1).flatten(1),
            start=np.arange(clips) * window,
            # The last token sees two frames after the speech.
            frames=np.minimum(speech + 2, window),
            tokens=tokens,
        )
        return self.layer_norm(mean_pool(x, tokens, 2))


class CompiledQwen2AudioForConditionalGeneration(
    SupportsCompiledEncoder, Qwen2AudioForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        towers={Qwen2AudioEncoder: CompiledQwen2AudioEncoder},
        classes=CLASSES,
    )
    needs = (symbols.WHISPER_WEIGHTS,)

    def _process_audio_input(
        self, audio_input: Qwen2AudioInputs
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        encoder = self.audio_tower
        if audio_input["type"] == "audio_embeds" or not isinstance(
            encoder, CompiledQwen2AudioEncoder
        ):
            return super()._process_audio_input(audio_input)
        # The host waits for the device here only.
        frames = host_lengths(audio_input["feature_attention_mask"].sum(-1))
        features = audio_input["input_features"].to(encoder.conv1.weight.dtype)
        x = self.multi_modal_projector(encoder(features, frames))
        return x.split(encoder.embeddings(frames))
