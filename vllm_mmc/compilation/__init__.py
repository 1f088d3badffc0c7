# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""One region: compiled once for all modules of equal structure."""

from vllm_mmc.lazy import exports

_NAMES = {
    "ignore_torch_compile": "decorators",
    "set_model_tag": "decorators",
    "should_torch_compile_mm_encoder": "decorators",
    "support_torch_compile": "decorators",
}
__all__ = list(_NAMES)
__getattr__ = exports(__name__, _NAMES)
