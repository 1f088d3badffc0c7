# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ultravox with Whisper's encoder, packed: one graph for any number of layers.

One thing differs from stock on purpose. Stock pads the chunks of a batch to the
longest, and the projector stacks encoded padding into the last embedding of a chunk.
This encoder returns zeros for padding, so a chunk does not depend on its batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.ultravox import (
    UltravoxFeedForwardProjector,
    UltravoxModel,
    UltravoxWhisperEncoder,
    pad_and_concat_to_dim3,
)

from vllm_mmc.encoder.audio_graphs import AudioInput, SupportsAudioGraphs
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Lengths,
    after_convolutions,
    host_lengths,
    packed_buffers,
    pad_rows,
    padded_groups,
)
from vllm_mmc.models.whisper import CLASSES, PackedWhisperEncoder


class CompiledUltravoxWhisperEncoder(UltravoxWhisperEncoder, PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, audio_lens)` takes log-mel features [chunks, num_mel_bins,
    frames] and the number of speech frames of each chunk, best on the host. It returns
    [chunks, frames / 2, d_model], with zeros after the speech.
    """

    tokens_per_embedding = tokens_per_share = 8

    def forward(
        self, input_features: torch.Tensor, audio_lens: Lengths
    ) -> torch.Tensor:
        chunks, _, frames = input_features.shape
        padded = int(after_convolutions(np.array(frames)))
        values = self.graph_buffers(input_features, audio_lens, padded_length=padded)
        return self.forward_graph(values).unflatten(0, (chunks, padded))

    def graph_buffers(
        self,
        input_features: torch.Tensor,
        audio_lens: Lengths,
        padded_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`.

        Args:
            padded_length: the tokens of each chunk, with zeros after the speech; by
                default its own, up to a multiple of `tokens_per_share`.
        """
        input_features = pad_and_concat_to_dim3(input_features)
        chunks, _, frames = input_features.shape
        if frames > self.max_context_length:
            raise ValueError(
                f"input_features must have at most {self.max_context_length} frames "
                f"per chunk, found {frames}"
            )
        speech = host_lengths(audio_lens)
        tokens = after_convolutions(speech)
        step = self.tokens_per_share
        return packed_buffers(
            input_features.transpose(0, 1).flatten(1),
            self.conv1.weight,
            start=np.arange(chunks) * frames,
            frames=speech,
            tokens=tokens,
            rows=padded_groups(
                tokens,
                np.full(chunks, padded_length)
                if padded_length is not None
                else -(-tokens // step) * step,
            ),
        )

    def embeddings(self, frames: Lengths) -> list[int]:
        return self.shares(host_lengths(frames)).tolist()

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return pad_rows(self.layer_norm(self.encode(values)), values["rows"])


class CompiledUltravoxModel(SupportsAudioGraphs, UltravoxModel):
    # The projector may have Whisper's layers too, and run them on one token.
    encoder_plan = EncoderPlan(
        classes=CLASSES | {UltravoxWhisperEncoder: CompiledUltravoxWhisperEncoder},
        roots=("audio_tower",),
    )
    audio_parts = {
        "audio_features": ("audio_num_chunks", 0),
        "audio_token_len": ("audio_num_chunks", 0),
        "audio_lens": ("audio_num_chunks", 0),
    }

    def _enable_graphs(self, vllm_config: VllmConfig) -> None:
        # A projector with layers reads lengths from the device.
        if isinstance(self.multi_modal_projector, UltravoxFeedForwardProjector):
            super()._enable_graphs(vllm_config)

    def audio_input(self, values: Any) -> AudioInput | None:
        if (features := values.get("audio_features")) is None:
            return None
        # vLLM keeps these lengths on the host.
        frames, chunks = values["audio_lens"], values["audio_num_chunks"]
        return AudioInput(features, host_lengths(frames), host_lengths(chunks))

    def encode_audio(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = self.audio_encoder.forward_graph(values)
        return self.multi_modal_projector(x[None], None)[0]
