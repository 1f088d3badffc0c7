# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Sizes of encoder inputs, in packed tokens: which get graphs, how often they come."""

from vllm_mmc.lazy import exports

_NAMES = {
    "Histogram": "histogram",
    "TokenBuckets": "buckets",
    "TokenRange": "buckets",
}
__all__ = list(_NAMES)
__getattr__ = exports(__name__, _NAMES)
