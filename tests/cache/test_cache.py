# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""An artifact is loaded where it fits and nowhere else."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from vllm_mmc.compilation import cache, regions
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

HIDDEN = 8


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledCached(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).sin() * self.scale


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        yield config


def start_anew(scale: float) -> CompiledCached:
    """A region in a process that has compiled nothing yet, as far as we can tell."""
    regions._structures.clear()
    region = CompiledCached(scale)
    x = torch.randn(5, HIDDEN)
    with torch.inference_mode():
        torch.testing.assert_close(region(x), region.forward(x))
    return region


def artifacts() -> set[Path]:
    return set(cache.root().glob("CompiledCached-*/artifact"))


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger(cache.__name__)
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


def compile_one(scale: float) -> Path:
    before = artifacts()
    with counters.expect(graphs=1, artifact_loads=0):
        start_anew(scale)
    (artifact,) = artifacts() - before
    return artifact


def test_a_second_start_loads() -> None:
    artifact = compile_one(2.0)
    with counters.expect(graphs=0, artifact_loads=1):
        start_anew(2.0)
    factors = json.loads(artifact.with_name("factors.json").read_text())
    assert {"vllm_mmc", "vllm", "torch", "structure", "signature"} <= factors.keys()


def test_another_structure_does_not() -> None:
    compile_one(3.0)
    with counters.expect(graphs=1, artifact_loads=0):
        start_anew(4.0)


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_artifact_is_compiled_again(damage: str) -> None:
    scale = float(len(damage))
    artifact = compile_one(scale)
    whole = artifact.read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "empty": b"", "foreign": b"MZ"}
    artifact.write_bytes(damaged[damage])
    with counters.expect(graphs=1, artifact_loads=0), warnings() as logged:
        start_anew(scale)
    assert [text.partition(":")[0] for text in logged] == ["Compiling again"]
    with counters.expect(graphs=0, artifact_loads=1):
        start_anew(scale)


def test_a_directory_that_cannot_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = Path.mkdir

    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name.startswith("CompiledCached"):
            raise OSError(28, "No space left on device")
        make(self, *args, **kwargs)

    before = artifacts()
    monkeypatch.setattr(Path, "mkdir", full)
    with counters.expect(graphs=1), warnings() as logged:
        start_anew(11.0)
    assert artifacts() == before
    assert len(logged) == 1 and "No space left" in logged[0]


def test_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_one(12.0)
    before = artifacts()
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    for scale in (12.0, 13.0):
        with counters.expect(graphs=1, artifact_loads=0):
            start_anew(scale)
    assert artifacts() == before


MODULE = """
import torch
import torch.nn as nn
from helper import act
from vllm_mmc.compilation.decorators import support_torch_compile


@support_torch_compile(dynamic_arg_dims={"x": 0})
class CompiledEdited(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return act(x)
"""
MAIN = """
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from edited import CompiledEdited
from vllm_mmc.compilation.counters import counters

with set_current_vllm_config(VllmConfig()):
    value = CompiledEdited()(torch.full((3,), 2.0))[0].item()
print(value, counters.graphs, counters.artifact_loads)
"""


def test_a_change_in_any_traced_file_counts(tmp_path: Path) -> None:
    """Also in a function that the region only calls, and in a fresh process."""

    def run() -> list[str]:
        result = subprocess.run(
            [sys.executable, "-c", MAIN],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.splitlines()[-1].split()

    def write(expression: str) -> None:
        (tmp_path / "edited.py").write_text(MODULE)
        (tmp_path / "helper.py").write_text(f"def act(x):\n    return {expression}\n")

    write("x + 1")
    assert run() == ["3.0", "1", "0"]
    assert run() == ["3.0", "0", "1"]
    write("x * 5")
    assert run() == ["10.0", "1", "0"]
