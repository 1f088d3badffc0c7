# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What `vllm-mmc demo` needs: real media, tiny real checkpoints, an engine to ask.

Importing this package imports nothing heavy.
"""

from importlib.util import find_spec

from vllm_mmc.catalog import CATALOG

SHIPPED = ("qwen2_5_vl", "whisper")
"""The families whose tiny checkpoints are in the wheel."""


def offered() -> tuple[str, ...]:
    """Returns the families that can be shown here: all, where there is a checkout."""
    if find_spec("mmc_testing") is None:
        return SHIPPED
    return tuple(dict.fromkeys(entry.family for entry in CATALOG))
