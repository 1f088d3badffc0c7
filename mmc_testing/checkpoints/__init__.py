# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints that are real in everything but size and training.

Each recipe writes a directory that vLLM and Hugging Face load as they load the
published checkpoint of the same family: real config class, tokenizer, processor and
chat template, the published parameter names, and random weights.
One module per encoder, with the `RECIPES` of the families that have it; what the
modules share is in `common`. Of the two families that `vllm-mmc demo` has in the wheel,
the checkpoints are in `vllm_mmc.demo.checkpoints`, and what tests know is here.
"""

import importlib
import pkgutil

from mmc_testing.writer import Recipe

__all__ = ["FAMILIES", "Recipe"]

FAMILIES: dict[str, Recipe] = {}
"""Family -> its recipe, of every module here."""

for _found in pkgutil.iter_modules(__path__, f"{__name__}."):
    FAMILIES |= getattr(importlib.import_module(_found.name), "RECIPES", {})
