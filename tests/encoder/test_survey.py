# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What a survey finds, and what is attached: on modules made to be difficult."""

import copy
import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn as nn
import vllm.compilation.decorators as stock
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context

from mmc_testing.engine import quick_compile
from vllm_mmc.compilation import compiler, shared_graph
from vllm_mmc.compilation.attached import detach
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.structure import structure_of
from vllm_mmc.encoder.model import attach_regions
from vllm_mmc.encoder.survey import Survey, survey

WIDTH = 8


@pytest.fixture(autouse=True)
def vllm_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmConfig]:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with quick_compile() as config, stock_compile_off(config):
        yield config


class Block(nn.Module):
    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.norm = nn.LayerNorm(WIDTH).requires_grad_(False)

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) + x


class Tower(nn.Module):
    """Three blocks, each called with the same arguments."""

    def __init__(self, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(index) for index in range(3))

    def forward(self, *args: Any) -> list[torch.Tensor]:
        return [block(*args) for block in self.blocks]


def x(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, WIDTH)


SIZES = [(x(3, 9),), (x(1, 3),), (x(2, 5),)]


def surveyed(tower: nn.Module, calls: Sequence[tuple[Any, ...]] = SIZES) -> Survey:
    return survey(tower, [partial(tower, *call) for call in calls])


def compiled(
    tower: nn.Module, config: VllmConfig, calls: Sequence[tuple[Any, ...]] = SIZES
) -> Survey:
    found = surveyed(tower, calls)
    attach_regions(tower, found, config)
    return found


def check(tower: nn.Module, calls: Sequence[tuple[Any, ...]]) -> None:
    for call in calls:
        ours = tower(*call)
        eager = [type(block).forward(block, *call) for block in tower.blocks]
        torch.testing.assert_close(ours, eager)


# ---------------------------------------------------------------- what is found


def test_blocks_that_repeat_are_one_region(vllm_config: VllmConfig) -> None:
    tower = Tower(Block)
    found = compiled(tower, vllm_config)
    (region,) = found.regions
    assert region.spec.name == "Block"
    assert region.paths == ("blocks.0", "blocks.1", "blocks.2")
    # Of 1 the survey has seen one dimension.
    assert region.spec.dynamic_dims == {"x": {0: None, 1: None}}
    assert region.spec.unbacked_dims == {"x": [0]}
    with counters.expect(structures=1, followers=2, graphs=1, recompiles=0):
        check(tower, [(x(4, 7),), (x(1, 2),), (x(8, 1),), (x(1, 1),)])


def test_the_outermost_class_is_the_region() -> None:
    class Outer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.inner = nn.ModuleList([Block(), Block()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner[1](self.inner[0](x))

    (region,) = surveyed(Tower(Outer)).regions
    assert (region.spec.name, len(region.paths)) == ("Outer", 3)


def test_blocks_of_two_structures_are_two_regions(vllm_config: VllmConfig) -> None:
    class Scaled(Block):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.scale = float(index % 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x) * self.scale

    tower = Tower(Scaled)
    tower.blocks.append(Scaled(1))
    found = compiled(tower, vllm_config)
    assert [len(region.paths) for region in found.regions] == [2, 2]
    with counters.expect(structures=2, followers=2, graphs=2):
        check(tower, [(x(4, 7),)])


def test_one_module_beside_the_blocks_is_a_region() -> None:
    class Projector(Block):
        pass

    class WithProjector(Tower):
        def __init__(self) -> None:
            super().__init__(Block)
            self.projector = Projector()
            self.never_called = nn.Sequential(Projector(), Projector())

        def forward(self, *args: Any) -> Any:
            return self.projector(super().forward(*args)[0])

    found = surveyed(WithProjector())
    names = {region.spec.name: len(region.paths) for region in found.regions}
    assert names == {"Block": 3, "Projector": 3}


def test_arguments_in_containers(vllm_config: VllmConfig) -> None:
    @dataclass
    class Metadata:
        lengths: torch.Tensor
        longest: int

    class Nested(Block):
        def forward(
            self,
            x: torch.Tensor,
            rotary: tuple[torch.Tensor, torch.Tensor],
            metadata: Metadata | None = None,
        ) -> torch.Tensor:
            y = self.act(x) * rotary[0] + rotary[1]
            return y if metadata is None else y * metadata.lengths.sum()

    def call(n: int, with_metadata: bool = True) -> tuple[Any, ...]:
        metadata = Metadata(torch.arange(n), 3) if with_metadata else None
        return x(n, 4), (x(n, 4), x(n, 4)), metadata

    tower = Tower(Nested)
    found = compiled(tower, vllm_config, [call(5), call(2), call(3)])
    (region,) = found.regions
    assert region.spec.dynamic_dims == {
        "x": {0: None},
        "rotary[0]": {0: None},
        "rotary[1]": {0: None},
        "metadata.lengths": {0: None},
    }
    with counters.expect(graphs=2):
        check(tower, [call(9), call(4), call(6, with_metadata=False), call(7)])


def test_an_int_that_varies(vllm_config: VllmConfig) -> None:
    class Counted(Block):
        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            return self.act(x) * n

    tower = Tower(Counted)
    calls = [(x(5), 5), (x(2), 2), (x(3), 3)]
    (region,) = compiled(tower, vllm_config, calls).regions
    assert region.spec.dynamic_ints == ("n",)
    with counters.expect(graphs=1):
        check(tower, [(x(7), 11), (x(4), 9)])


def test_layouts_that_change_are_made_contiguous(vllm_config: VllmConfig) -> None:
    class Masked(Block):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.act(x) * mask

    def call(n: int, wide: int) -> tuple[Any, ...]:
        return x(3, n), torch.ones(3, wide, 1)[:, :n]

    tower = Tower(Masked)
    calls = [call(5, 9), call(2, 2), call(3, 4)]
    (region,) = compiled(tower, vllm_config, calls).regions
    assert region.spec.contiguous == ("mask",)
    with counters.expect(graphs=1):
        check(tower, [call(6, 6), call(4, 11)])


# ---------------------------------------------------------------- names of layers


class Layered(Block):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


class Reader(Layered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) + self.layer_idx


def test_an_index_that_is_not_read_does_not_count(vllm_config: VllmConfig) -> None:
    tower = Tower(Layered)
    (region,) = compiled(tower, vllm_config).regions
    assert region.spec.identity_attrs == ("layer_idx",)
    with counters.expect(structures=1, followers=2, graphs=1):
        check(tower, [(x(4, 7),)])


def test_a_graph_that_reads_its_index_is_not_shared(vllm_config: VllmConfig) -> None:
    tower = Tower(Reader)
    compiled(tower, vllm_config)
    with counters.expect(graphs=3, followers=0):
        check(tower, [(x(4, 7),), (x(2, 3),)])


class LateReader(Layered):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(x)
        return y + self.layer_idx if x.shape[1] > 20 else y


def test_a_later_graph_that_reads_its_index_is_not_shared(
    vllm_config: VllmConfig,
) -> None:
    """When the second graph is made, followers share the first."""
    tower = Tower(LateReader)
    compiled(tower, vllm_config)
    with counters.expect(structures=1, followers=2, graphs=4):
        check(tower, [(x(4, 7),), (x(2, 21),), (x(3, 30),)])


# ---------------------------------------------------------------- what is refused


class Mutates(Block):
    last = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(x) + self.last
        self.last = x.shape[1]
        return y


class Listed(Block):
    def forward(self, x: torch.Tensor, grids: list[Any]) -> torch.Tensor:
        return self.act(x) * len(grids)


class Stem(Block):
    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x.transpose(1, 2)).transpose(1, 2))


class Single(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([module])

    def forward(self, *args: Any) -> list[Any]:
        return [self.blocks[0](*args)]


class Cache:
    """Keeps what it has seen, as transformers' caches of keys and values do."""

    total = 0


class Caching(Block):
    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        cache.total += x.shape[0]
        return self.act(x) * cache.total


REFUSED: dict[str, tuple[nn.Module, Sequence[tuple[Any, ...]], str]] = {
    "attributes": (Tower(lambda _: Mutates()), SIZES, "changes the module's own"),
    "list": (
        Single(Listed()),
        [(x(2), [1]), (x(3), [1, 2]), (x(4), [1])],
        "grids has another length",
    ),
    "number in a list": (
        Single(Listed()),
        [(x(2), [1]), (x(3), [2]), (x(4), [3])],
        r"grids\[0\] is a number that varies",
    ),
    "an object": (
        Tower(lambda _: Caching()),
        [(x(2), Cache()), (x(3), Cache()), (x(4), Cache())],
        "cache is a Cache, which a call may change",
    ),
    "convolution": (Single(Stem()), SIZES, "a convolution"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_has_its_reason(case: str) -> None:
    tower, calls, reason = REFUSED[case]
    found = surveyed(tower, calls)
    assert not found.regions
    ((_, told),) = found.eager.items()
    assert re.search(reason, told), told


def test_data_dependent_code_runs_eager(vllm_config: VllmConfig) -> None:
    class Dependent(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x) if x.sum().item() > 0 else x

    tower = Tower(lambda _: Dependent())
    compiled(tower, vllm_config)
    with counters.expect(graphs=0, fallbacks=1):
        check(tower, [(x(4, 7),), (x(2, 3),)])
    (structure,) = shared_graph.structures()
    assert "host metadata" in str(structure.failure)


def test_what_takes_too_long_runs_eager(
    vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forever(*_: Any, **__: Any) -> None:
        while True:
            sum(range(1000))

    vllm_config.additional_config = {"vllm_mmc": {"compile_seconds": 0.05}}
    tower = Tower(Block)
    compiled(tower, vllm_config)
    monkeypatch.setattr(compiler, "compile_region", forever)
    with counters.expect(graphs=0, fallbacks=1):
        check(tower, [(x(4, 7),), (x(2, 3),)])
    (structure,) = shared_graph.structures()
    assert "compile_seconds" in str(structure.failure)


# ---------------------------------------------------------------- attached


def test_nothing_else_of_a_module_changes(vllm_config: VllmConfig) -> None:
    tower = Tower(Block)
    before = dict(tower.named_parameters()), structure_of(tower).digest
    compiled(tower, vllm_config)
    assert (dict(tower.named_parameters()), structure_of(tower).digest) == before
    assert all(type(block) is Block for block in tower.blocks)
    detach(tower)
    assert not any("forward" in vars(module) for module in tower.modules())


def test_forward_hooks_run(vllm_config: VllmConfig) -> None:
    tower, seen = Tower(Block), []
    compiled(tower, vllm_config)
    tower.blocks[1].register_forward_hook(lambda *_: seen.append("hook"))
    with counters.expect(graphs=2):  # a hook is structure
        check(tower, [(x(4, 7),)])
    assert seen == ["hook"]


def test_copies_are_bound_to_themselves(vllm_config: VllmConfig) -> None:
    tower = Tower(Block)
    compiled(tower, vllm_config)
    check(tower, [(x(4, 7),)])
    for made in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower.blocks))):
        blocks = made.blocks if isinstance(made, Tower) else made
        for block in blocks:
            assert vars(block)["forward"].module is block
            block.linear.weight.mul_(2)
            given = x(3, 2)
            torch.testing.assert_close(block(given), Block.forward(block, given))


def test_a_layer_that_is_replaced_afterwards(vllm_config: VllmConfig) -> None:
    """As LoRA does. Before the first call it is structure; after it, a rescue."""

    class Wrapped(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + 1

    tower = Tower(Block)
    compiled(tower, vllm_config)
    tower.blocks[0].linear = Wrapped(tower.blocks[0].linear)
    with counters.expect(graphs=2, rescues=0):
        check(tower, [(x(4, 7),)])
    tower.blocks[1].linear = Wrapped(tower.blocks[1].linear)
    with counters.expect(rescues=1):
        check(tower, [(x(4, 7),)])


def test_a_class_that_vllm_compiles(vllm_config: VllmConfig) -> None:
    @stock.support_torch_compile(
        dynamic_arg_dims={"x": 0},
        enable_if=stock.should_torch_compile_mm_encoder,
        is_encoder=True,
    )
    class Decorated(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x) * 2

    tower = Tower(Decorated)
    compiled(tower, vllm_config)
    with counters.expect(structures=1, followers=2, graphs=1):
        check(tower, [(x(4, 7),), (x(3, 2),)])


def test_inlined_in_a_compiled_parent(vllm_config: VllmConfig) -> None:
    tower, given = Tower(Block), x(4, 7)
    compiled(tower, vllm_config)
    outer = torch.compile(tower, backend="eager", fullgraph=True)
    with counters.expect(graphs=0):
        torch.testing.assert_close(outer(given)[0], tower.blocks[0].act(given) + given)


def test_skip_compiled(vllm_config: VllmConfig) -> None:
    tower = Tower(Block)
    compiled(tower, vllm_config)
    with (
        set_forward_context(None, vllm_config, skip_compiled=True),
        counters.expect(structures=0, graphs=0),
    ):
        check(tower, [(x(4, 7),)])


# ---------------------------------------------------------------- kept


def test_a_survey_is_plain_json() -> None:
    found = surveyed(Tower(Layered))
    assert Survey.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    "damage",
    [
        lambda survey: survey.pop("regions"),
        lambda survey: survey["regions"][0].pop("paths"),
        lambda survey: survey["regions"][0]["spec"].update(name=1, unknown=2),
        # Which attributes are left out decides which modules share a graph.
        lambda survey: survey["regions"][0]["spec"].update(identity_attrs=["scale"]),
    ],
)
def test_what_is_no_survey_is_refused(damage: Callable[[Any], Any]) -> None:
    values = surveyed(Tower(Layered)).to_json()
    damage(values)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Survey.from_json(values)
