# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""All recipes of tiny checkpoints, and what a test needs of them."""

from mmc_testing import vision_recipes
from mmc_testing.writer import Recipe, write

__all__ = ["RECIPES", "Recipe", "write"]

RECIPES: dict[str, Recipe] = {**vision_recipes.RECIPES}
