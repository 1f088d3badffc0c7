# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Which vLLM is tested."""

import importlib.metadata

from packaging.version import Version

_VLLM = Version(importlib.metadata.version("vllm"))
RELEASE = f"{_VLLM.major}.{_VLLM.minor}"


def is_before(release: str) -> bool:
    """Whether the installed vLLM is older, for instance than "0.33"."""
    return Version(RELEASE) < Version(release)
