# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The families that can be shown: those in the wheel, and those of a checkout."""

from vllm_mmc.demo.checkpoints.qwen2_5_vl import QWEN2_5_VL
from vllm_mmc.demo.checkpoints.whisper import WHISPER
from vllm_mmc.demo.writer import Recipe

FAMILIES = {"qwen2_5_vl": QWEN2_5_VL, "whisper": WHISPER}
"""Those whose tiny checkpoints are in the wheel."""


def family(name: str) -> Recipe:
    """Returns one of the families that `vllm_mmc.demo.offered` names."""
    if name in FAMILIES:
        return FAMILIES[name]
    # The others come with a checkout, never with the wheel.
    from mmc_testing import checkpoints

    return checkpoints.FAMILIES[name]
