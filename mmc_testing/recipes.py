# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""All recipes of tiny checkpoints, and what a test needs of them."""

from dataclasses import replace

from mmc_testing import (
    audio_recipes,
    gemma_recipes,
    more_recipes,
    remote_recipes,
    vision_recipes,
)
from mmc_testing.writer import Recipe, write

__all__ = ["RECIPES", "Recipe", "write"]

RECIPES: dict[str, Recipe] = {
    **vision_recipes.RECIPES,
    **gemma_recipes.RECIPES,
    **remote_recipes.RECIPES,
    **audio_recipes.RECIPES,
    **more_recipes.RECIPES,
}

# The same checkpoints, run by the classes of transformers.
for name in ("llava_clip", "gemma3", "internvl"):
    recipe = RECIPES[name]
    RECIPES[f"transformers_{name}"] = replace(
        recipe,
        title=f"{recipe.title}, Transformers backend",
        engine_args={**recipe.engine_args, "model_impl": "transformers"},
    )
