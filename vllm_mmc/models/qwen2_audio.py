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
)

from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_graphs import AudioInput, SupportsPackedAudio
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Lengths,
    after_convolutions,
    host_lengths,
    mean_pool,
    packed_buffers,
    whole_groups,
)
from vllm_mmc.models.whisper import CLASSES, PackedWhisperEncoder

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
        return packed_buffers(
            input_features.transpose(0, 1).flatten(1),
            self.conv1.weight,
            start=np.arange(clips) * window,
            # The last token sees two frames after the speech.
            frames=np.minimum(speech + 2, window),
            tokens=tokens,
            rows=whole_groups(tokens, 2),
        )

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.layer_norm(mean_pool(self.encode(values), values["rows"], 2))


class CompiledQwen2AudioForConditionalGeneration(
    SupportsPackedAudio, Qwen2AudioForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        towers={Qwen2AudioEncoder: CompiledQwen2AudioEncoder},
        classes=CLASSES,
    )
    needs = (symbols.WHISPER_WEIGHTS,)

    def audio_input(self, values: Any) -> AudioInput | None:
        if (features := values.get("input_features")) is None:
            return None
        # The host waits for the device here only.
        frames = host_lengths(values["feature_attention_mask"].sum(-1))
        return AudioInput(features, frames)
