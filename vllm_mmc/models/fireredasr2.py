# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""FireRedASR2's audio encoder: the relative shift as a view."""

import torch
from vllm.model_executor.models.conformer_encoder import RelPosMultiHeadAttention

from vllm_mmc.layers.relative_shift import relative_shift


class FireRedRelativeAttention(RelPosMultiHeadAttention):
    def _rel_shift(self, x: torch.Tensor) -> torch.Tensor:
        return relative_shift(x)


ENCODER_REWRITES = {RelPosMultiHeadAttention: FireRedRelativeAttention}
