# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A graph that every start compiles anew is said, counted, and an exit status of 1."""

import argparse
import errno
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.logs import warnings_of
from vllm_mmc.cache import store
from vllm_mmc.cache.explain import why_missed
from vllm_mmc.cache.key import root
from vllm_mmc.cli import cache as cache_command
from vllm_mmc.cli import doctor, engine
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

HIDDEN = 8
MODEL = nn.Module()  # as vLLM loads it
MODEL.encoder_eager_because = None


class Product(nn.Module):
    """Has no kernel of its own, which makes it quick to compile."""

    def __init__(self, held: object = None) -> None:
        super().__init__()
        self.held = {"by": held}
        self.prefix = "blocks.0"
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))


DECORATE = support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)


@DECORATE
class CompiledUnkept(Product):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@DECORATE
class CompiledNamed(Product):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight if self.prefix == "blocks.0" else x


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig())
    shared_graph._structures.clear()
    with set_current_vllm_config(config):
        yield config
    shared_graph._structures.clear()


def start(region: nn.Module) -> None:
    x = torch.randn(5, HIDDEN)
    with torch.inference_mode():
        torch.testing.assert_close(region(x), region.forward(x))


def warm(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """What `vllm-mmc cache warm` ends with, as if this process were its engine."""
    outcome = engine.Outcome([engine._report(MODEL)], {})
    with mock.patch.object(engine, "start", return_value=outcome):
        status = cache_command.run_warm(
            argparse.Namespace(model="MODEL", engine_args=[])
        )
    return status, *capsys.readouterr()


def check(region: nn.Module, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One WARNING, the counter, `doctor`, and `cache warm`."""
    name = type(region).__name__
    before = set(root().glob(f"{name}-*"))
    with counters.expect(graphs=1, unkept=1), warnings_of(store) as logged:
        start(region)
    (warning,) = logged
    assert warning.startswith(f"{name} is compiled but cannot be kept in {root()}")
    assert reason in warning
    assert set(root().glob(f"{name}-*")) == before
    status, out, problems = warm(capsys)
    assert status == 1 and " not kept)" in out
    assert f"{name} is not kept: {reason}" in problems
    report = engine._report(MODEL)
    assert f"it is not kept: {reason}" in "\n".join(doctor.diagnosis(report))
    assert not doctor._healthy(report)


def test_a_structure_that_means_nothing_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    region = CompiledUnkept(held=threading.Lock())
    reason = "the value of held['by'] (_thread.lock) cannot be compared in another"
    check(region, reason, capsys)


def test_explain_says_it_too() -> None:
    told: list[list[str] | None] = []
    with store.explain_lookups(lambda *entry: told.append(why_missed(*entry))):
        start(CompiledUnkept(held=threading.Lock()))
    assert told[0] and "held['by'] (_thread.lock)" in told[0][0]


def test_a_graph_that_reads_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    check(CompiledNamed(), "it reads the name of its module", capsys)


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    check(CompiledUnkept(held="full"), "OSError: [Errno 28] No space left", capsys)


def test_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with counters.expect(graphs=1, unkept=0), warnings_of(store) as logged:
        start(CompiledUnkept(held="kept"))
    assert logged == [] and doctor._healthy(engine._report(MODEL))
    status, _, problems = warm(capsys)
    assert (status, problems) == (0, "")


def test_a_cache_that_is_switched_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does that knows; but then there is nothing to warm."""
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with counters.expect(graphs=1, unkept=0), warnings_of(store) as logged:
        start(CompiledUnkept(held=threading.Lock()))
    assert logged == [] and doctor._healthy(engine._report(MODEL))
    status, out, problems = warm(capsys)
    assert (status, out) == (1, "")
    assert "VLLM_DISABLE_COMPILE_CACHE" in problems
