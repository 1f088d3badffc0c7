# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2-Audio with a native, packed encoder: one graph, whatever the depth.

Stock runs Hugging Face's encoder over 30 s of every clip, with a dense mask. Here the
frames that the mask hides are not computed: a short clip costs what it is long.
"""

import numpy as np
import torch
from transformers.models.qwen2_audio import Qwen2AudioEncoder
from vllm.model_executor.models.qwen2_audio import (
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioInputs,
)

from vllm_mmc.encoder.interfaces import SupportsCompiledEncoder
from vllm_mmc.encoder.packed import Lengths, host_lengths, mean_pool
from vllm_mmc.models.whisper import (
    ENCODER_REGIONS,
    PackedWhisperEncoder,
    after_convolutions,
)

# === Audio Encoder === #


class CompiledQwen2AudioEncoder(PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, frames)` takes log-mel features [clips, num_mel_bins, 3000]
    and how many frames of each are speech (on the host, or it waits for the device);
    it returns [embeddings, d_model], clip after clip, `embeddings(frames)` of each.
    """

    def forward(self, input_features: torch.Tensor, frames: Lengths) -> torch.Tensor:
        clips, _, window = input_features.shape
        speech = host_lengths(frames)
        tokens = after_convolutions(speech)
        metadata = self.prepare_encoder_metadata(
            begin=np.arange(clips) * window,
            # The last token sees the two frames behind it.
            frames=np.minimum(speech + 2, window),
            tokens=tokens,
        )
        x = self.embed_packed(input_features.transpose(0, 1).flatten(1), metadata)
        x = self.forward_packed(x, metadata.cu_seqlens, metadata.max_seqlen)
        return self.layer_norm(mean_pool(x, tokens, 2))


class CompiledQwen2AudioForConditionalGeneration(
    SupportsCompiledEncoder, Qwen2AudioForConditionalGeneration
):
    encoder_regions = ENCODER_REGIONS
    native_encoders = {Qwen2AudioEncoder: CompiledQwen2AudioEncoder}

    def _process_audio_input(
        self, audio_input: Qwen2AudioInputs
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        encoder = self.audio_tower
        if audio_input["type"] == "audio_embeds" or not isinstance(
            encoder, CompiledQwen2AudioEncoder
        ):
            return super()._process_audio_input(audio_input)
        # The one thing that the host waits for.
        frames = host_lengths(audio_input["feature_attention_mask"].sum(-1))
        features = audio_input["input_features"].to(encoder.conv1.weight.dtype)
        x = self.multi_modal_projector(encoder(features, frames))
        return x.split(encoder.embeddings(frames))
