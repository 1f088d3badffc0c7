# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The setting `measure`, by a clock that only the regions move."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import VllmConfig

from mmc_testing.engine import quick_compile
from mmc_testing.logs import warnings_of
from vllm_mmc.compilation import measure, shared_graph
from vllm_mmc.compilation.compiler import Graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.compilation.shared_graph import SharedGraph
from vllm_mmc.encoder import dummy_inputs
from vllm_mmc.encoder.interfaces import CompiledEncoder, SupportsCompiledEncoder
from vllm_mmc.encoder.model import compile_by_survey
from vllm_mmc.settings import Settings
from vllm_mmc.sizes.buckets import TokenBuckets

WIDTH = 8


class Clock:
    """Seconds that the regions have taken, and what was called on how many rows."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []
        self.seconds: dict[str, Any] = {"compiled": 1.0, "eager": 1.0}

    def call(self, way: str, x: torch.Tensor) -> None:
        self.calls.append((way, len(x)))
        seconds = self.seconds[way]
        self.now += next(seconds) if isinstance(seconds, Iterator) else seconds


clock = Clock()


class Block(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clock.call("eager", x)
        return self.linear(x) * self.scale


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Decorated(Block):
    forward = Block.forward


def stub(self: SharedGraph, *_: Any) -> tuple[Graph, None]:
    """What compiling gives: a graph for all calls."""

    def run(module: Block, x: torch.Tensor) -> torch.Tensor:
        clock.call("compiled", x)
        return module.linear(x) * module.scale

    return Graph(lambda f_locals: True, run), None


@pytest.fixture(autouse=True)
def vllm_config(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VllmConfig]:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    monkeypatch.setattr(SharedGraph, "_compile", stub)
    monkeypatch.setattr(
        measure, "time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    clock.__init__()  # type: ignore[misc]
    settings = {"vllm_mmc": {"measure": getattr(request, "param", "warmup")}}
    with quick_compile(additional_config=settings) as config:
        yield config


def x(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH)


def warmed_up(*sizes: int) -> list[Decorated]:
    """A leader and two followers after a warm-up."""
    blocks = [Decorated() for _ in range(3)]
    with measure.at_warmup():
        for rows in sizes:
            for block in blocks:
                block(x(rows))
    return blocks


def ways(blocks: list[Decorated], rows: int = 5) -> set[str]:
    """How these blocks run."""
    clock.calls.clear()
    for block in blocks:
        given = x(rows)
        assert torch.equal(block(given), block.linear(given) * block.scale)
    return {way for way, _ in clock.calls}


def structure() -> SharedGraph:
    (found,) = shared_graph.structures()
    return found


def test_what_is_slower_compiled_runs_eager() -> None:
    clock.seconds["compiled"] = 1.08
    with counters.expect(measured_eager=1, graphs=1, fallbacks=0):
        blocks = warmed_up(3, 7)
    assert ways(blocks) == {"eager"}
    with counters.expect(followers=1, graphs=0):
        assert ways([Decorated()]) == {"eager"}  # one that joins later
    told = "compiled takes 1.08 of eager's time here (1.08e+03 and 1e+03 ms)"
    assert structure().eager == structure().measured == told


@pytest.mark.parametrize("compiled", [0.5, 1.0, 1.02])
def test_what_is_not_slower_stays_compiled(compiled: float) -> None:
    clock.seconds["compiled"] = compiled
    with counters.expect(measured_eager=0):
        blocks = warmed_up(3, 7)
    assert ways(blocks) == {"compiled"}
    assert structure().eager is None
    assert f"takes {compiled:.2f} of eager's time" in str(structure().measured)


def test_the_largest_call_is_timed_in_turns() -> None:
    warmed_up(3, 7, 2)
    timed = clock.calls[9:]
    assert timed == [("compiled", 7), ("eager", 7)] * 6


def test_the_median_counts_without_the_first_time() -> None:
    warm_up = [0.0] * 3
    clock.seconds["compiled"] = iter([*warm_up, 99.0, 1.0, 1.1, 50.0, 1.2, 1.3])
    clock.seconds["eager"] = iter([0.1, 2.0, 2.0, 0.1, 2.0, 2.0])
    warmed_up(3)
    assert "takes 0.60 of eager's time" in str(structure().measured)  # 1.2 and 2


@pytest.mark.parametrize("way", ["compiled", "eager"])
def test_an_error_changes_nothing(way: str) -> None:
    calls = iter([1.0] * 5 if way == "compiled" else [1.0])  # then StopIteration
    clock.seconds[way] = calls
    with (
        counters.expect(measured_eager=0, rescues=0),
        warnings_of(measure) as logged,
    ):
        blocks = warmed_up(3)
    assert len(logged) == 1 and "Decorated cannot be measured" in logged[0]
    clock.seconds[way] = 1.0
    assert ways(blocks) == {"compiled"}
    assert structure().measured is None


@pytest.mark.parametrize("vllm_config", ["off"], indirect=True)
def test_off_makes_no_further_call() -> None:
    clock.seconds["compiled"] = 9.0
    blocks = warmed_up(3, 7)
    assert clock.calls == [("compiled", 3)] * 3 + [("compiled", 7)] * 3
    assert ways(blocks) == {"compiled"}
    assert not structure()._observes


def test_several_ranks_are_not_measured(vllm_config: VllmConfig) -> None:
    vllm_config.parallel_config.world_size = 2
    clock.seconds["compiled"] = 9.0
    with warnings_of(measure) as logged:
        blocks = warmed_up(3)
    assert len(clock.calls) == 3
    assert ways(blocks) == {"compiled"}
    assert "no effect with 2 ranks" in logged[0]


def test_a_call_of_a_request_is_not_kept() -> None:
    blocks = warmed_up()
    for block in blocks:
        block(x(9))
    assert measure._largest is None
    assert structure().measured is None
    with pytest.raises(KeyError), measure.at_warmup():
        raise KeyError
    assert measure._largest is None


def test_a_structure_that_runs_eager_is_left_alone() -> None:
    blocks = [Decorated()]
    with measure.at_warmup():
        blocks[0](x(3))
        structure().eager = "compiled and eager differ"
        clock.calls.clear()
    assert not clock.calls and structure().measured is None


def test_a_device_is_waited_for() -> None:
    seen: list[str] = []
    device = torch.device("cuda", 0)

    def synchronize(which: torch.device) -> None:
        assert which == device
        seen.append("wait")

    with mock.patch.object(torch.accelerator, "synchronize", synchronize):
        measure._seconds(lambda: seen.append("call"), {device})
        assert seen == ["wait", "call", "wait"]
        measure._seconds(lambda: seen.append("call"), set())
    assert seen[3:] == ["call"]


# ---------------------------------------------------------------- where it happens


def test_after_a_survey(vllm_config: VllmConfig) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.Sequential(*(Block() for _ in range(3)))

    model = Model()
    batches = [{"x": x(rows)} for rows in (3, 7, 2)]
    clock.seconds["compiled"] = 2.0
    with (
        mock.patch.object(dummy_inputs, "batches", lambda _: batches),
        counters.expect(structures=1, measured_eager=1),
    ):
        compile_by_survey(model, ["tower"], lambda x: model.tower(x), vllm_config)
    clock.calls.clear()
    model.tower(x(4))
    assert clock.calls == [("eager", 4)] * 3


def test_after_the_warm_up_of_an_encoder() -> None:
    class Encoder(CompiledEncoder):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.block = Decorated()
            settings = Settings(measure="warmup")
            self.encoder_shapes = TokenBuckets(settings, limit=4096, step=4)

        def run_dummy(self, tokens: int) -> torch.Tensor:
            return self.block(x(tokens))

    class Model(nn.Module):
        encoder_report = None
        run_dummy_encoder = SupportsCompiledEncoder.run_dummy_encoder
        warm_up_sizes = SupportsCompiledEncoder.warm_up_sizes

        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder()

    clock.seconds["compiled"] = 2.0
    with counters.expect(measured_eager=1):
        SupportsCompiledEncoder.warm_up_encoder(Model())
    assert {rows for _, rows in clock.calls[:3]} == {4, 8, 1024}
    assert {rows for _, rows in clock.calls[3:]} == {1024}


@pytest.mark.parametrize(
    ("limit", "step", "measured"),
    [
        (None, 1, 1024),
        (4096, 577, 577),
        (600, 4, 600),
        (602, 4, 600),
        (None, 1500, 1500),
    ],
)
def test_the_size_that_is_measured(limit: int | None, step: int, measured: int) -> None:
    off = TokenBuckets(Settings(), limit, step).warmup_sizes()
    on = TokenBuckets(Settings(measure="warmup"), limit, step).warmup_sizes()
    assert set(on) == {*off, measured}
