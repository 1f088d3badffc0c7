# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Cohere ASR's audio encoder: the relative shift as a view."""

import torch
import torch.nn as nn
from vllm.model_executor.models.cohere_asr import RelPositionMultiHeadAttention

from vllm_mmc.layers.batch_norm import BatchNorm1d
from vllm_mmc.layers.relative_shift import relative_shift


class CohereRelativeAttention(RelPositionMultiHeadAttention):
    def rel_shift(self, x: torch.Tensor) -> torch.Tensor:
        return relative_shift(x)


ENCODER_REWRITES = {
    RelPositionMultiHeadAttention: CohereRelativeAttention,
    nn.BatchNorm1d: BatchNorm1d,
}
