# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Layers that compiled encoders share."""

from vllm_mmc.lazy import exports

_NAMES = {
    "LayerNorm": "layer_norm",
    "UpcastLinearMethod": "upcast",
    "activate_": "activation",
    "apply_rotary_emb": "rotary_embedding",
    "cos_sin": "rotary_embedding",
    "gelu_": "activation",
}
__all__ = list(_NAMES)
__getattr__ = exports(__name__, _NAMES)
