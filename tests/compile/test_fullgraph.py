# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Regions have no graph break, and one graph fits every size and every block."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn as nn

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, tower_context
from mmc_testing.guarded import guarded_compilation
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

Grid = list[list[int]]


@dataclass(frozen=True)
class Encoder:
    """What one family is tested with.

    Attributes:
        model: has the regions.
        run: encodes one batch of a size.
        sizes: the smallest comes first.
        largest: one of them.
        blocks: they are one structure.
        regions: structures in all.
    """

    model: nn.Module
    run: Callable[[Any], torch.Tensor]
    sizes: Sequence[Any]
    largest: Any
    blocks: nn.ModuleList
    regions: int


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


def qwen2_5_vl(model: nn.Module) -> Encoder:
    def run(grid: Grid) -> torch.Tensor:
        pixels = torch.randn(sum(t * h * w for t, h, w in grid), 3 * 2 * 14 * 14)
        return model.visual(pixels, grid)

    return Encoder(model, run, GRIDS, GRIDS[7], model.visual.blocks, regions=3)


def llama4(model: nn.Module) -> Encoder:
    def run(tiles: int) -> torch.Tensor:
        pixels = torch.randn(tiles, 3, 112, 112)
        return model.encode_image_chunks(pixels, use_data_parallel=False)

    layers = model.vision_model.model.layers
    return Encoder(model, run, [*range(1, 11), 16, 17], 17, layers, regions=4)


def whisper(model: nn.Module) -> Encoder:
    def run(size: tuple[int, int]) -> torch.Tensor:
        items, frames = size
        return model.model.encoder(torch.randn(items, 80, frames))

    # Also shorter than Whisper's 3000 frames, as the encoder of other models sees them.
    sizes = [(1, 4), (1, 3000), *((items, 64) for items in range(1, 17)), (3, 500)]
    return Encoder(model, run, sizes, (16, 64), model.model.encoder.layers, regions=1)


def qwen3_asr(model: nn.Module) -> Encoder:
    def run(frames: list[int]) -> torch.Tensor:
        return model.audio_tower(torch.randn(128, sum(frames)), frames)

    # One token, one chunk, one window, several windows, and clips of all of these.
    sizes = [[1], [8], [9], [100], [101], [800], [2400], [1, 1], [9, 9, 9]]
    sizes += [[100, 730, 50], [50, 2999, 801, 7], [100] * 16]
    layers = model.audio_tower.layers
    return Encoder(model, run, sizes, [50, 2999, 801, 7], layers, regions=1)


def qwen2_audio(model: nn.Module) -> Encoder:
    """Packed, as most audio encoders with Whisper's layers are."""

    def run(frames: list[int]) -> torch.Tensor:
        return model.audio_tower(torch.randn(len(frames), 128, 3000), frames)

    # One token, an odd one, a whole window, and clips of all of these.
    sizes = [[1], [3], [4], [5], [100], [2999], [3000], [1, 1], [3, 3, 3]]
    sizes += [[100, 730, 50], [50, 2999, 801, 7], [100] * 16]
    layers = model.audio_tower.layers
    return Encoder(model, run, sizes, [50, 2999, 801, 7], layers, regions=1)


def minicpmo(model: nn.Module) -> Encoder:
    """Packed, and causal by chunks."""

    def run(frames: list[int]) -> torch.Tensor:
        return model.apm([torch.randn(80, n) for n in frames], 1.0)

    # One token, one chunk, a chunk and one more, and clips of all of these.
    sizes = [[1], [3], [99], [100], [101], [3000], [1, 1], [3, 3, 3]]
    sizes += [[100, 730, 50], [50, 2999, 801, 7], [100] * 16]
    layers = model.apm.layers
    return Encoder(model, run, sizes, [50, 2999, 801, 7], layers, regions=1)


@pytest.fixture(
    scope="module",
    params=[
        qwen2_5_vl,
        llama4,
        whisper,
        qwen3_asr,
        minicpmo,
        # The graph of the block is Whisper's.
        pytest.param(qwen2_audio, marks=pytest.mark.slow),
    ],
)
def encoder(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    family = request.param.__name__
    checkpoint = request.getfixturevalue(family)
    args = {"max_num_batched_tokens": 8192, **FAMILIES[family].engine_args}
    with tower_context(checkpoint, compile_mm_encoder=True, **args) as vllm_config:
        yield request.param(load_model(vllm_config))


@pytest.fixture(autouse=True)
def guarded(encoder: Encoder) -> Iterator[None]:
    torch._dynamo.reset()
    for module in encoder.model.modules():
        if hasattr(module, "_mmc_shared_graph"):
            module._mmc_shared_graph = None
    with guarded_compilation(), torch.inference_mode():
        yield


@pytest.fixture
def blocks(encoder: Encoder) -> Iterator[nn.ModuleList]:
    """To be given other classes; afterwards they have their own again."""
    own = type(encoder.blocks[0])
    yield encoder.blocks
    for block in encoder.blocks:
        block.__class__ = own


@pytest.mark.parametrize("first", ["smallest", "largest"])
def test_one_graph_fits_every_size(first: str, encoder: Encoder) -> None:
    with counters.expect(
        structures=encoder.regions,
        graphs=encoder.regions,
        followers=len(encoder.blocks) - 1,
        recompiles=0,
    ):
        if first == "largest":
            encoder.run(encoder.largest)
        for size in encoder.sizes:
            encoder.run(size)


def test_the_guards_can_fail(encoder: Encoder, blocks: nn.ModuleList) -> None:
    """A dimension that is not marked is one that the guards object to."""
    unmarked = support_torch_compile(dynamic_arg_dims={"cu_seqlens": 0})(
        type("CompiledUnmarkedBlock", (type(blocks[0]),), {})
    )
    for block in blocks:
        block.__class__ = unmarked
    encoder.run(encoder.sizes[0])
    with pytest.raises(torch._dynamo.exc.RecompileError, match="size mismatch"):
        encoder.run(encoder.largest)


def test_a_graph_break_is_an_error(encoder: Encoder, blocks: nn.ModuleList) -> None:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super(broken, self).forward(*args, **kwargs)

    broken: Any = type("CompiledBrokenBlock", (type(blocks[0]),), {"forward": forward})
    blocks[0].__class__ = broken
    with pytest.raises(torch._dynamo.exc.Unsupported):
        encoder.run(encoder.sizes[0])
