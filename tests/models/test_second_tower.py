# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Models whose audio tower is ours by hand and whose vision tower is surveyed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import embed_inputs, load_model, stock_class, tower_context
from vllm_mmc.catalog import CATALOG, CatalogEntry
from vllm_mmc.compilation.counters import counters

PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
SIZES = [(96, 64), (224, 160), (64, 64), (320, 96)]


def picture(width: int, height: int) -> dict[str, Any]:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return {
        "prompt": PLACEHOLDER,
        "multi_modal_data": {"image": Image.fromarray(pixels.astype(np.uint8))},
    }


# Qwen3-Omni and Clef-Omni. The second has the same towers.
FIRST, *OTHERS = [e for e in CATALOG if e.mixin and e.regions == ("audio block",)]


@pytest.mark.parametrize(
    "row",
    [FIRST, *(pytest.param(row, marks=pytest.mark.slow) for row in OTHERS)],
    ids=lambda row: row.family,
)
def test_pictures_are_compiled_and_equal_stock(
    row: CatalogEntry, tmp_path: Path
) -> None:
    family = FAMILIES[row.family]
    checkpoint = family.write(tmp_path)
    limits = {"limit_mm_per_prompt": {"image": 1, "audio": 1}}
    args = {**family.engine_args, **limits}
    pictures = [picture(*size) for size in SIZES]
    clip = family.request([1.5])
    with torch.inference_mode():
        with tower_context(
            checkpoint, **stock_class(row.architecture), **args
        ) as config:
            model = load_model(config)
            inputs = [embed_inputs(config, [x]) for x in (*pictures, clip)]
            expected = [model.embed_multimodal(**x)[0] for x in inputs]
        with tower_context(checkpoint, compile_mm_encoder=True, **args) as config:
            model = load_model(config)
            found = [model.embed_multimodal(**x)[0] for x in inputs]
            with counters.expect(graphs=0, recompiles=0):
                again = [model.embed_multimodal(**x)[0] for x in inputs]
    assert model.encoder_eager_because is None
    assert model.encoder_report.survey.regions
    for of_survey, of_graph, of_stock in zip(found, again, expected, strict=True):
        torch.testing.assert_close(of_survey, of_stock, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(of_graph, of_stock, rtol=1e-4, atol=2e-5)
