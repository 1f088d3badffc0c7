# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""MiniCPM-o with a native, packed audio encoder: one graph, whatever the depth.

It is causal by chunks: a second of speech hears itself and what came before. One thing
differs from stock on purpose: stock pads the clips of a batch to the longest and means
to mask that, but compares places after the convolutions with lengths before them, so
the last second of a clip hears padding. Here padding is not computed: a clip is what it
is alone.
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

from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor
from vllm_mmc.compilation.decorators import adopt
from vllm_mmc.encoder.audio_input import AudioValidationMixin
from vllm_mmc.encoder.interfaces import SupportsCompiledEncoder
from vllm_mmc.encoder.packed import Ints, mean_pool, one_item, starts
from vllm_mmc.models.whisper import (
    ENCODER_REGIONS,
    CompiledWhisperEncoderAttention,
    PackedWhisperEncoder,
    after_convolutions,
)

# === Audio Encoder === #


class CompiledMiniCPMWhisperEncoderAttention(CompiledWhisperEncoderAttention):
    """`sequence_lengths` is of each token how many of its clip it hears."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: torch.Tensor | None = None,
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        q, k, v = self._in_4d(query[None], key[None], value[None])
        ops = torch.ops.vllm_mmc
        if self.cpu_op == "varlen_attention":
            out = ops.varlen_attention(
                q, k, v, self.scale, cu_seqlens, sequence_lengths
            )
        else:
            longest = max_seqlen_tensor(max_seqlen)
            out = ops.prefix_sdpa(
                q, k, v, self.scale, cu_seqlens, longest, sequence_lengths
            )
        return out.view(query.shape)


class CompiledMiniCPMWhisperEncoder(PackedWhisperEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, chunk_length)` takes log-mel features [num_mel_bins,
    frames] of each clip, of any lengths, and the seconds of a chunk (0: each clip is
    one); it returns [tokens, d_model], clip after clip, `tokens(input_features)` of
    each.
    """

    tokens_per_embedding = 9  # one of pool_step, and as many as are too few for one

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", init_in_fp32: bool = False
    ) -> None:
        super().__init__(
            vllm_config=vllm_config, prefix=prefix, init_in_fp32=init_in_fp32
        )
        adopt(self, ATTENTION, vllm_config)

    def forward(
        self, input_features: Sequence[torch.Tensor], chunk_length: float
    ) -> torch.Tensor:
        frames = _frames(input_features)
        tokens = after_convolutions(frames)
        metadata = self.prepare_encoder_metadata(starts(frames), frames, tokens)
        x = self.embed_packed(torch.cat(list(input_features), dim=-1), metadata)
        chunk = int(max(chunk_length, 0) * TOKENS_PER_SECOND)
        chunk = chunk or self.max_source_positions
        heard = (metadata.positions // chunk + 1) * chunk
        x = self.forward_packed(x, metadata.cu_seqlens, metadata.max_seqlen, heard)
        return self.layer_norm(x[: tokens.sum()])

    @staticmethod
    def tokens(input_features: Sequence[torch.Tensor]) -> Ints:
        """Of each clip."""
        return after_convolutions(_frames(input_features))

    def run_dummy(self, tokens: int) -> torch.Tensor:
        width = self.layer_norm.weight.shape[0]
        x, bounds, longest = one_item(tokens, width, self.conv1.weight)
        heard = torch.arange(1, len(x) + 1, device=x.device)
        return self.forward_packed(x, bounds, longest, heard)


def _frames(input_features: Sequence[torch.Tensor]) -> Ints:
    return np.array([clip.shape[-1] for clip in input_features], dtype=np.int64)


TOKENS_PER_SECOND = 50
ATTENTION = {CompiledWhisperEncoderAttention: CompiledMiniCPMWhisperEncoderAttention}


class MiniCPMOAudioValidation(AudioValidationMixin):
    @property
    def min_samples(self) -> int:
        # Two frames of 10 ms become a token, and `audio_pool_step` tokens an embedding.
        step = self.get_default_audio_pool_step()
        return 2 * (step - 1) * self.get_default_audio_sampling_rate() // 100 + 1


class SupportsCompiledMiniCPMWhisper(SupportsCompiledEncoder):
    audio_validation = MiniCPMOAudioValidation
    encoder_regions = ENCODER_REGIONS
    native_encoders = {MiniCPMWhisperEncoder: CompiledMiniCPMWhisperEncoder}

    def encoder_roots(self) -> list[str]:
        # Vision is built before it, and stays as it is.
        return ["apm"] if hasattr(self, "apm") else []

    def get_audio_hidden_states(
        self, data: MiniCPMOAudioFeatureInputs
    ) -> list[torch.Tensor]:
        encoder = self.apm
        if not isinstance(encoder, CompiledMiniCPMWhisperEncoder):
            return super().get_audio_hidden_states(data)
        dtype = encoder.conv1.weight.dtype
        slices = [x.to(dtype) for x in data["audio_features"]]
        x = encoder(slices, self.config.audio_chunk_length)
        x = self.audio_projection_layer(x)
        step, tokens = self.config.audio_pool_step, encoder.tokens(slices)
        x, embeddings = mean_pool(x, tokens, step), tokens // step
        # A clip longer than half a minute is some slices.
        ends = np.cumsum([len(clip) for clip in data["audio_feature_lens"]])[:-1]
        return list(x.split([int(c.sum()) for c in np.split(embeddings, ends)]))


class CompiledMiniCPMO2_6(SupportsCompiledMiniCPMWhisper, MiniCPMO2_6):
    pass


class CompiledMiniCPMO4_5(SupportsCompiledMiniCPMWhisper, MiniCPMO4_5):
    pass


VERSIONS = {"2.6": CompiledMiniCPMO2_6, "4.5": CompiledMiniCPMO4_5}


class CompiledMiniCPMO(SupportsCompiledMiniCPMWhisper, MiniCPMO):
    """As stock's: what is built is the class of the version."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        version = str(getattr(vllm_config.model_config.hf_config, "version", "2.6"))
        chosen = VERSIONS.get(".".join(version.split(".")[:2]))
        if chosen is None:  # stock says why
            return super().__new__(cls, vllm_config=vllm_config, prefix=prefix)
        return chosen(vllm_config=vllm_config, prefix=prefix)
