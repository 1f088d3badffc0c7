# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Regions have no graph break, and one graph fits every grid and every block."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.models.qwen2_5_vl import CompiledQwen2_5_VisionBlock
from vllm_mmc.testing.engine import load_model, tower_context
from vllm_mmc.testing.guarded import guarded_compilation

PATCH_VALUES = 3 * 2 * 14 * 14

# The smallest picture, strips, windows that are full, cut and alone, several items,
# video, and 4096 patches.
GRIDS = [
    [[1, 2, 2]],
    [[1, 2, 64]],
    [[1, 64, 2]],
    [[1, 8, 8]],
    [[1, 10, 14]],
    [[1, 16, 16]],
    [[1, 34, 46]],
    [[1, 64, 64]],
    [[1, 2, 2], [1, 2, 2]],
    [[1, 4, 6], [1, 18, 20], [1, 2, 2]],
    [[2, 8, 8]],
    [[4, 4, 6]],
    [[3, 6, 8], [1, 12, 8]],
]


def patches(grid: list[list[int]]) -> torch.Tensor:
    return torch.randn(sum(t * h * w for t, h, w in grid), PATCH_VALUES)


@pytest.fixture(scope="module")
def tower(qwen2_5_vl: Path) -> Iterator[nn.Module]:
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as vllm_config:
        yield load_model(vllm_config).visual


@pytest.fixture(autouse=True)
def forget_graphs(tower: nn.Module) -> None:
    torch._dynamo.reset()
    for module in tower.modules():
        if hasattr(module, "_mmc_compiled"):
            module._mmc_compiled = None


@pytest.mark.parametrize("first", [0, 7], ids=["smallest first", "largest first"])
def test_one_graph_fits_every_grid(first: int, tower: nn.Module) -> None:
    with (
        guarded_compilation(),
        torch.inference_mode(),
        counters.expect(structures=3, graphs=3, recompiles=0, followers=3),
    ):
        for grid in (GRIDS[first], *GRIDS):
            tower(patches(grid), grid)


def test_the_guards_can_fail(tower: nn.Module) -> None:
    """A dimension that is not marked is one that the guards object to."""
    unmarked = support_torch_compile(dynamic_arg_dims={"cu_seqlens": 0})(
        type("CompiledUnmarkedBlock", (CompiledQwen2_5_VisionBlock,), {})
    )
    for block in tower.blocks:
        block.__class__ = unmarked
    try:
        with (
            guarded_compilation(),
            torch.inference_mode(),
            counters.expect(recompiles=1),
        ):
            tower(patches([[1, 4, 4]]), [[1, 4, 4]])
            tower(patches([[1, 8, 8]]), [[1, 8, 8]])
    finally:
        for block in tower.blocks:
            block.__class__ = CompiledQwen2_5_VisionBlock


def test_a_graph_break_is_an_error(tower: nn.Module) -> None:
    class CompiledBrokenBlock(CompiledQwen2_5_VisionBlock):
        def forward(self, x: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super().forward(x, **kwargs)

    tower.blocks[0].__class__ = CompiledBrokenBlock
    try:
        with (
            guarded_compilation(),
            torch.inference_mode(),
            pytest.raises(torch._dynamo.exc.Unsupported),
        ):
            tower(patches([[1, 4, 4]]), [[1, 4, 4]])
    finally:
        tower.blocks[0].__class__ = CompiledQwen2_5_VisionBlock
