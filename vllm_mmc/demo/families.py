# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The families that can be shown: those in the wheel, and those of a checkout."""

import importlib

from vllm_mmc.demo import SHIPPED
from vllm_mmc.demo.writer import Recipe

FAMILIES: dict[str, Recipe] = {
    name: importlib.import_module(f"vllm_mmc.demo.checkpoints.{name}").RECIPE
    for name in SHIPPED
}
"""Those whose tiny checkpoints are in the wheel."""


def family(name: str) -> Recipe:
    """Returns one of the families that `vllm_mmc.demo.offered` names."""
    if name in FAMILIES:
        return FAMILIES[name]
    # The others come with a checkout, never with the wheel.
    from mmc_testing import checkpoints

    return checkpoints.FAMILIES[name]
