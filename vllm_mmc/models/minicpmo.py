# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""MiniCPM-o with a native, packed audio encoder: one graph for any number of layers.

Attention is causal by chunks: a second of speech attends to itself and to what came
before. One thing differs from stock on purpose. Stock pads the clips of a batch to the
longest, and its mask compares positions after the convolutions with lengths before
them, so the last second of a clip attends to padding. This encoder does not compute
padding, so a clip does not depend on its batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.minicpmo import (
    MiniCPMO,
    MiniCPMO2_6,
    MiniCPMO4_5,
    MiniCPMOAudioFeatureInputs,
    MiniCPMWhisperEncoder,
)
from vllm.model_executor.models.whisper import WhisperEncoderAttention

from vllm_mmc.attention.mm_encoder_attention import PrefixAttention
from vllm_mmc.compat import symbols
from vllm_mmc.encoder.audio_input import AudioValidationMixin
from vllm_mmc.encoder.interfaces import EncoderPlan, SupportsCompiledEncoder
from vllm_mmc.encoder.packed import (
    TOKENS_PER_SECOND,
    Ints,
    after_convolutions,
    clip_frames,
    mean_pool,
    on_device,
    one_item,
    packed_buffers,
    starts,
    whole_groups,
)
from vllm_mmc.models.whisper import (
    BLOCKS,
    CLASSES,
    CompiledWhisperEncoderAttention,
    PackedWhisperEncoder,
)

# === Audio Encoder === #


class CompiledMiniCPMWhisperEncoderAttention(
    PrefixAttention, CompiledWhisperEncoderAttention
):
    """`sequence_lengths[i]`: how many leading tokens of its own clip token i may attend
    to."""


class CompiledMiniCPMWhisperEncoder(PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, chunk_length)` takes log-mel features [num_mel_bins,
    frames] of each clip, of any lengths, and the seconds of a chunk (0: each clip is
    one chunk). It returns [tokens, d_model], clip after clip; a clip has
    `tokens(input_features)` of them.
    """

    encoder_plan = EncoderPlan(
        classes=BLOCKS
        | {WhisperEncoderAttention: CompiledMiniCPMWhisperEncoderAttention}
    )
    tokens_per_embedding = 9
    """Upper bound: `audio_pool_step` (5) tokens, and at most 4 that are left over."""

    def forward(
        self, input_features: Sequence[torch.Tensor], chunk_length: float
    ) -> torch.Tensor:
        frames = clip_frames(input_features)
        tokens = after_convolutions(frames)
        values = packed_buffers(
            torch.cat(list(input_features), dim=-1),
            self.conv1.weight,
            start=starts(frames),
            frames=frames,
            tokens=tokens,
        )
        chunk = int(max(chunk_length, 0) * TOKENS_PER_SECOND)
        chunk = chunk or self.max_source_positions
        visible = (values["positions"] // chunk + 1) * chunk
        x = self.encode(values, sequence_lengths=visible)
        return self.layer_norm(x[: tokens.sum()])

    @staticmethod
    def tokens(input_features: Sequence[torch.Tensor]) -> Ints:
        """The number of tokens of each clip."""
        return after_convolutions(clip_frames(input_features))

    def run_dummy(self, tokens: int) -> torch.Tensor:
        width = self.layer_norm.weight.shape[0]
        x, bounds, longest = one_item(tokens, width, self.conv1.weight)
        visible = torch.arange(1, len(x) + 1, device=x.device)
        return self.forward_packed(x, bounds, longest, visible)


class MiniCPMOAudioValidation(AudioValidationMixin):
    @property
    def min_samples(self) -> int:
        # Two frames of 10 ms become a token, and `audio_pool_step` tokens an embedding.
        step = self.get_default_audio_pool_step()
        return 2 * (step - 1) * self.get_default_audio_sampling_rate() // 100 + 1


class SupportsCompiledMiniCPMWhisper(SupportsCompiledEncoder):
    audio_validation = MiniCPMOAudioValidation
    encoder_plan = EncoderPlan(
        towers={MiniCPMWhisperEncoder: CompiledMiniCPMWhisperEncoder},
        classes=CLASSES,
        roots=("apm", "vpm", "resampler"),
        surveyed=("vpm", "resampler"),
    )
    needs = (symbols.WHISPER_WEIGHTS,)

    def get_audio_hidden_states(
        self, data: MiniCPMOAudioFeatureInputs
    ) -> list[torch.Tensor]:
        encoder = self.apm
        if not isinstance(encoder, CompiledMiniCPMWhisperEncoder):
            return super().get_audio_hidden_states(data)
        slices = data["audio_features"]
        x = encoder(slices, self.config.audio_chunk_length)
        x = self.audio_projection_layer(x)
        step, tokens = self.config.audio_pool_step, encoder.tokens(slices)
        rows = on_device(whole_groups(tokens, step), x.device)
        x, embeddings = mean_pool(x, rows, step), tokens // step
        # A clip longer than half a minute is several slices.
        ends = np.cumsum([len(clip) for clip in data["audio_feature_lens"]])[:-1]
        return list(x.split([int(c.sum()) for c in np.split(embeddings, ends)]))


class CompiledMiniCPMO2_6(SupportsCompiledMiniCPMWhisper, MiniCPMO2_6):
    pass


class CompiledMiniCPMO4_5(SupportsCompiledMiniCPMWhisper, MiniCPMO4_5):
    pass


VERSIONS = {"2.6": CompiledMiniCPMO2_6, "4.5": CompiledMiniCPMO4_5}


class CompiledMiniCPMO(SupportsCompiledMiniCPMWhisper, MiniCPMO):
    """Builds the class of the checkpoint's version, as stock does."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        version = str(getattr(vllm_config.model_config.hf_config, "version", "2.6"))
        chosen = VERSIONS.get(".".join(version.split(".")[:2]))
        if chosen is None:  # stock raises the error
            return super().__new__(cls, vllm_config=vllm_config, prefix=prefix)
        return chosen(vllm_config=vllm_config, prefix=prefix)
