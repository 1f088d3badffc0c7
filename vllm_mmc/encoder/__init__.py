# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A whole encoder: what is replaced, surveyed, installed and checked."""

from vllm_mmc.lazy import exports

_NAMES = {
    "CompiledEncoder": "install",
    "EncoderPlan": "install",
    "FiniteEmbeddings": "finite",
    "InstallReport": "install",
    "SupportsCompiledEncoder": "interfaces",
    "Survey": "survey",
}
__all__ = list(_NAMES)
__getattr__ = exports(__name__, _NAMES)
