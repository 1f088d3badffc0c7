# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2-Audio with a native, packed encoder: one graph for any number of layers.

Stock runs Hugging Face's encoder over 30 s of every clip, with a dense mask. This
encoder does not compute the frames that the mask hides.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_audio import Qwen2AudioEncoder
from vllm.model_executor.models.qwen2_audio import (
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioInputs,
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_graphs import AudioItems, SupportsAudioGraphs
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import Lengths, host_lengths, mean_pool, whole_groups
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
        return self.forward_graph(self.graph_buffers(input_features, frames))

    def graph_buffers(
        self, input_features: torch.Tensor, frames: Lengths
    ) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`."""
        clips, _, window = input_features.shape
        speech = host_lengths(frames)
        tokens = after_convolutions(speech)
        return self.packed_buffers(
            input_features.transpose(0, 1).flatten(1),
            start=np.arange(clips) * window,
            # The last token sees two frames after the speech.
            frames=np.minimum(speech + 2, window),
            tokens=tokens,
            rows=whole_groups(tokens, 2),
        )

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.layer_norm(mean_pool(self.encode(values), values["rows"], 2))


class CompiledQwen2AudioForConditionalGeneration(
    SupportsAudioGraphs, Qwen2AudioForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        towers={Qwen2AudioEncoder: CompiledQwen2AudioEncoder},
        classes=CLASSES,
    )
    needs = (symbols.WHISPER_WEIGHTS,)

    @property
    def audio_encoder(self) -> CompiledQwen2AudioEncoder:
        return self.audio_tower

    def audio_items(self, kwargs: Mapping[str, Any]) -> AudioItems | None:
        if "input_features" not in kwargs:
            return None
        frames = host_lengths(kwargs["feature_attention_mask"].sum(-1))
        return AudioItems(
            np.array(self.audio_encoder.embeddings(frames)),
            self.audio_encoder.shares(after_convolutions(frames)),
        )

    def audio_buffers(self, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        features = kwargs["input_features"].to(self.audio_encoder.conv1.weight.dtype)
        frames = kwargs["feature_attention_mask"].sum(-1)
        return self.audio_encoder.graph_buffers(features, frames)

    def encode_audio(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.multi_modal_projector(self.audio_encoder.forward_graph(values))

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
        x = self.encode_audio(encoder.graph_buffers(features, frames))
        return x.split(encoder.embeddings(frames))
