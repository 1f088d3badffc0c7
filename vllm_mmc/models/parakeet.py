# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Parakeet, the audio encoder of Nemotron models: the relative shift as a view."""

import torch
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderAttention

from vllm_mmc.layers.relative_shift import relative_shift


class ParakeetRelativeAttention(ParakeetEncoderAttention):
    def _rel_shift(self, attention_scores: torch.Tensor) -> torch.Tensor:
        return relative_shift(attention_scores)


ENCODER_REWRITES = {ParakeetEncoderAttention: ParakeetRelativeAttention}
