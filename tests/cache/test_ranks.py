# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""One artifact for all ranks, unless the graph read the rank."""

import fcntl
import functools
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear

from mmc_testing.logs import warnings_of
from vllm_mmc.cache import turn as turns
from vllm_mmc.cache.explain import why_missed
from vllm_mmc.cache.key import root
from vllm_mmc.cache.store import explain_lookups
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.compilation.structure import structure_of
from vllm_mmc.encoder.install import EncoderPlan, install

HIDDEN = 8
GROUP = types.SimpleNamespace(rank_in_group=0, world_size=2)

compiled = functools.partial(
    support_torch_compile, dynamic_arg_dims={"x": 0}, is_encoder=True
)


class OfRank(nn.Module):
    """What a layer of vLLM knows of its rank."""

    def __init__(self, rank: int, size: int = 2) -> None:
        super().__init__()
        self.tp_rank, self.tp_size = rank, size
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))


@compiled()
class CompiledNotReading(OfRank):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@compiled()
class CompiledReading(OfRank):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.tp_rank


@compiled()
class CompiledReadingBelow(OfRank):
    def __init__(self, rank: int, size: int = 2) -> None:
        super().__init__(rank, size)
        self.below = OfRank(rank, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # As an attention of vLLM takes its heads.
        return (x @ self.weight).chunk(2, dim=-1)[self.below.tp_rank]


@compiled()
class CompiledReadingTheGroup(OfRank):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + GROUP.rank_in_group


@compiled()
class CompiledAsking(OfRank):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + dist.get_rank()


READING = [
    CompiledReading,
    CompiledReadingBelow,
    CompiledReadingTheGroup,
    CompiledAsking,
]


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        yield config


def start(cls: type[OfRank], rank: int, size: int = 2) -> OfRank:
    """A region in a process of this rank that has compiled nothing yet."""
    shared_graph._structures.clear()
    GROUP.rank_in_group = rank
    dist.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())
    try:
        region = cls(rank, size)
        x = torch.randn(5, HIDDEN)
        with torch.inference_mode():
            torch.testing.assert_close(region(x), region.forward(x))
    finally:
        dist.destroy_process_group()
    return region


def kept(cls: type[OfRank]) -> list[dict[str, str]]:
    """The factors of each entry."""
    return [
        json.loads((entry / "factors.json").read_text())
        for entry in root().glob(f"{cls.__name__}-*")
    ]


def test_one_artifact_serves_all_ranks() -> None:
    with counters.expect(graphs=1, artifact_loads=0, unkept=0):
        start(CompiledNotReading, 0)
    with counters.expect(graphs=0, artifact_loads=1, artifact_misses=0):
        start(CompiledNotReading, 1)
    assert ["rank" in factors for factors in kept(CompiledNotReading)] == [False]


@pytest.mark.parametrize("cls", READING)
def test_a_graph_that_reads_its_rank_is_not_shared(cls: type[OfRank]) -> None:
    for rank in range(2):
        with counters.expect(graphs=1, artifact_loads=0, unkept=0):
            start(cls, rank)
    # Each is kept, and neither takes the other away.
    for rank in (0, 1, 0):
        with counters.expect(graphs=0, artifact_loads=1, artifact_misses=0):
            start(cls, rank)
    assert len({factors["rank"] for factors in kept(cls)}) == 2


@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 1)])
def test_a_module_that_ranks_do_not_share_has_no_rank(
    size: int, rank: int, vllm_config: VllmConfig
) -> None:
    """The attention of some encoders, with whole items on each rank."""
    encoder = nn.Sequential(OfRank(1, size), OfRank(1, size))
    install(encoder, EncoderPlan(), vllm_config)
    assert [module.tp_rank for module in encoder] == [rank, rank]
    other = nn.Sequential(OfRank(0, size), OfRank(0, size))
    assert structure_of(encoder).digest == structure_of(other).digest


def test_a_rank_of_one_is_no_rank() -> None:
    start(CompiledReading, 0, size=1)
    (factors,) = (f for f in kept(CompiledReading) if "rank" not in f)
    assert factors


def test_two_ranks_in_one_process() -> None:
    """Layers that are split among other processes than their neighbours."""
    first, second = CompiledReading(0, size=4), CompiledReading(3, size=4)
    x = torch.randn(5, HIDDEN)
    with torch.inference_mode(), counters.expect(structures=2, followers=0):
        for region in (first, second):
            torch.testing.assert_close(region(x), region.forward(x))


def test_the_entry_of_a_rank_is_explained() -> None:
    start(CompiledReading, 0)
    told = []
    shared_graph._structures.clear()
    with explain_lookups(lambda *entry: told.append(why_missed(*entry))):
        CompiledReading(0)(torch.randn(5, HIDDEN))
    assert told == [None]


# ---------------------------------------------------------------- layers of vLLM


def layers(rank: int, monkeypatch: pytest.MonkeyPatch) -> nn.ModuleList:
    for module in (linear, parameter):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 2)
    return nn.ModuleList(
        [
            linear.QKVParallelLinear(HIDDEN, 4, 2),
            linear.ColumnParallelLinear(HIDDEN, HIDDEN),
            linear.RowParallelLinear(HIDDEN, HIDDEN),
            linear.RowParallelLinear(HIDDEN, HIDDEN, disable_tp=True),
        ]
    )


def test_layers_of_two_ranks_are_of_one_structure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (structure_of(layers(r, monkeypatch)) for r in range(2))
    assert first.digest == second.digest
    named = ["0.tp_rank=1", "1.tp_rank=1", "2.tp_rank=1"]
    assert [n for n in second.rank if "weight" not in n and "bias" not in n] == named
    assert first.rank == tuple(name.replace("=1", "=0") for name in second.rank)


def test_a_layer_that_each_rank_has_whole_has_no_rank(
    monkeypatch: pytest.MonkeyPatch, vllm_config: VllmConfig
) -> None:
    """Llama4 projects so, with whole items on each rank."""
    found = []
    for rank in range(2):
        layers(rank, monkeypatch)
        encoder = nn.Sequential(linear.ReplicatedLinear(HIDDEN, HIDDEN))
        assert (encoder[0].tp_rank, encoder[0].tp_size) == (rank, 2)
        install(encoder, EncoderPlan(), vllm_config)
        assert (encoder[0].tp_rank, encoder[0].tp_size) == (0, 1)
        found.append(structure_of(encoder))
    assert found[0].digest == found[1].digest
    assert found[0].rank == found[1].rank == ()


# ---------------------------------------------------------------- together

TOGETHER = """
import multiprocessing, sys
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from tests.cache import test_ranks
from vllm_mmc.compilation.counters import counters

def rank(cls, number, barrier, queue):
    torch.set_num_threads(1)
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        barrier.wait()
        test_ranks.start(getattr(test_ranks, cls), number)
    queue.put((counters.graphs, counters.artifact_loads))

fork = multiprocessing.get_context("fork")
for cls in sys.argv[1:]:
    barrier, queue = fork.Barrier(3), fork.SimpleQueue()
    ranks = [
        fork.Process(target=rank, args=(cls, i, barrier, queue)) for i in range(3)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    graphs, loads = zip(*(queue.get() for _ in ranks))
    print(cls, sum(graphs), sum(loads))
"""


def test_of_ranks_that_start_together_one_compiles(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", TOGETHER, "CompiledNotReading", "CompiledReading"],
        env=os.environ | {"VLLM_CACHE_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    *_, shared, own = result.stdout.splitlines()
    assert shared == "CompiledNotReading 1 2"
    assert own == "CompiledReading 3 0"
    assert not list(tmp_path.rglob(".turn-*"))


ENTRY = "CompiledBusy-0123456789abcdef"


@pytest.fixture
def busy() -> Iterator[TextIO]:
    """The lock of another process, which makes the entry and never finishes."""
    root().mkdir(parents=True, exist_ok=True)
    with (root() / f".turn-{ENTRY}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    os.unlink(file.name)  # nobody else has taken it away


def test_the_waiting_has_a_bound(busy: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.2)
    with warnings_of(turns) as told, turns.turn(root() / ENTRY):
        (line,) = told
    assert "compiling it here too" in line


def test_who_has_waited_keeps_nobody_waiting(
    busy: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_of_the_other(_: float) -> None:
        fcntl.flock(busy, fcntl.LOCK_UN)

    monkeypatch.setattr(time, "sleep", end_of_the_other)
    with warnings_of(turns) as told, turns.turn(root() / ENTRY):
        fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not told


def test_without_a_lock_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with turns.turn(tmp_path / "file" / ENTRY):
        pass
