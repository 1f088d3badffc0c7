# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A second start compiles nothing, whatever the mode and wherever the cache lies."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cache.test_quantised import COMPRESSED_TENSORS

MAIN = """
import json
import sys
from unittest import mock

import torch
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationMode

from vllm_mmc.compilation.counters import counters
from mmc_testing.engine import load_model, tower_context

checkpoint, mode, warm, output = sys.argv[1:]
grid = [[1, 8, 12], [1, 4, 4]]
pixels = torch.randn(112, 3 * 2 * 14 * 14, generator=torch.manual_seed(0))


def compile_nothing(*_, **__):
    raise AssertionError("a warm start compiles")


if warm == "warm":
    for name in ("cpp_builder.run_compile_cmd", "graph.GraphLowering.codegen"):
        mock.patch(f"torch._inductor.{name}", compile_nothing).start()
with tower_context(
    checkpoint,
    compile_mm_encoder=True,
    mode=CompilationMode(int(mode)),
    additional_config={"vllm_mmc": {"on_error": "raise"}},
) as config:
    tower = load_model(config).visual
    with torch.inference_mode():
        torch.save(tower(pixels, grid), output)
found = vars(counters) | {"inductor": compilation_counter.num_inductor_compiles}
print(json.dumps(found))
"""


def start(root: Path, *args: object) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, args)],
        env=os.environ | {"VLLM_CACHE_ROOT": str(root)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.slow  # two processes
def test_a_checkpoint_that_is_quantised(qwen2_5_vl: Path, tmp_path: Path) -> None:
    """By compressed-tensors, with the encoder in its ignore list."""
    checkpoint = tmp_path / "quantised"
    shutil.copytree(qwen2_5_vl, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    # The weights stay as they are: all layers are in the list.
    config["quantization_config"] = COMPRESSED_TENSORS | {"ignore": ["re:.*"]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    first, second = (
        start(tmp_path / "cache", checkpoint, 2, temperature, tmp_path / "output.pt")
        for temperature in ("cold", "warm")
    )
    assert (first["graphs"], first["unkept"], first["artifact_loads"]) == (3, 0, 0)
    assert (second["graphs"], second["artifact_loads"]) == (0, 3)


@pytest.mark.slow  # two processes; engines that load are in tests/e2e
@pytest.mark.parametrize("mode", [2, 3])
def test_a_second_start_elsewhere(mode: int, qwen2_5_vl: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    cold = start(there, qwen2_5_vl, mode, "cold", tmp_path / "cold.pt")
    assert (cold["graphs"], cold["artifact_loads"]) == (3, 0)
    there.rename(here)
    warm = start(here, qwen2_5_vl, mode, "warm", tmp_path / "warm.pt")
    assert (warm["graphs"], warm["artifact_loads"], warm["inductor"]) == (0, 3, 0)
    assert warm["artifact_misses"] == warm["fallbacks"] == 0
    outputs = [torch.load(tmp_path / f"{name}.pt") for name in ("cold", "warm")]
    assert torch.equal(*outputs)
