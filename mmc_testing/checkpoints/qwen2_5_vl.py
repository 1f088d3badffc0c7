# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What tests know of Qwen2.5-VL; its tiny checkpoint is in the wheel."""

from typing import Any

import torch

from mmc_testing.hf_encoders import HuggingFaceEncoder
from mmc_testing.writer import Recipe
from vllm_mmc.demo.checkpoints.qwen2_5_vl import RECIPE


def _sharded_inputs() -> dict[str, Any]:
    grids = [[1, 8, 12], [1, 2, 2], [1, 16, 6]]
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 14 * 14)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}


RECIPES = {
    "qwen2_5_vl": Recipe.of(
        RECIPE,
        # encoder(pixel_values, grid_thw).pooler_output: [tokens, out_hidden_size]
        hf_encoders={
            "image": HuggingFaceEncoder(
                "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:"
                "Qwen2_5_VisionTransformerPretrainedModel",
                prefix="visual.",
                config=("vision_config",),
            )
        },
        regions=(
            "CompiledQwen2_5_VisionPatchEmbed",
            "CompiledQwen2_5_VisionBlock",
            "CompiledQwen2_5_VisionPatchMerger",
        ),
        sharded_inputs=_sharded_inputs,
    )
}
