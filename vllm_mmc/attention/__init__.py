# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Attention of encoders, as layers and as ops."""

from vllm_mmc.lazy import exports

_NAMES = {
    "MMEncoderAttention": "mm_encoder_attention",
    "batched_sdpa": "vit_attn_wrappers",
    "prefix_sdpa": "vit_attn_wrappers",
    "varlen_attention": "vit_attn_wrappers",
}
__all__ = list(_NAMES)
__getattr__ = exports(__name__, _NAMES)
