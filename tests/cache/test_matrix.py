# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Never a wrong graph: all that can differ, in one cache directory, in any order.

(stock, ours) x (two structures) x (two settings) x (two sources) x (float32, bfloat16).
Each process is a (side, setting, source) and computes the structures and dtypes. Of
stock, each structure and dtype is a class of its own, as vLLM advises: its key does not
tell instances apart.
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

SOURCES = {"sin": "return x.sin()", "cos": "return x.cos() + 1"}
HELPER = "def act(x):\n    {}\n"
REGION = """
import sys
import torch
import torch.nn as nn
from helper import act
from vllm.model_executor.layers.activation import SiluAndMul

if sys.argv[1] == "stock":
    from vllm.compilation.decorators import support_torch_compile
else:
    from vllm_mmc.compilation.decorators import support_torch_compile


class Region(nn.Module):
    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.gate = SiluAndMul()  # the setting decides what it computes with
        generator = torch.Generator().manual_seed(int(deep))
        self.weight = nn.Parameter(torch.randn(8, 16, generator=generator))


DECORATE = support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
"""
FORWARD = """
@DECORATE
class {name}(Region):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = act(self.gate(x @ self.weight))
        return y.exp() * 2 if self.deep else y
"""
MAIN = """
import json
import sys
import torch
import region
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm_mmc.compilation.counters import counters

side, setting = sys.argv[1:3]
config = VllmConfig(
    compilation_config=CompilationConfig(custom_ops=[setting]),
    additional_config={"vllm_mmc": {"on_error": "raise"}},
)
differences = {}
with set_current_vllm_config(config), torch.inference_mode():
    for deep in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            bits = torch.finfo(dtype).bits
            stock = f"CompiledStock{int(deep)}x{bits}"
            name = stock if side == "stock" else "CompiledOurs"
            module = getattr(region, name)(deep).to(dtype)
            for rows in (3, 7):
                x = torch.linspace(-1, 1, rows * 8).view(rows, 8).to(dtype)
                eager = module.forward(x).float()
                difference = (module(x).float() - eager).abs().max() / eager.abs().max()
                # Of a few roundings; another graph is off by about 1.
                assert difference < 8 * torch.finfo(dtype).eps, (name, deep, dtype)
print(json.dumps({"graphs": counters.graphs, "loads": counters.artifact_loads}))
"""


def run(
    directory: Path, root: Path, side: str, setting: str, source: str
) -> dict[str, int]:
    """One process; raises if a cell of it differs from eager."""
    names = ["CompiledOurs", *(f"CompiledStock{d}x{b}" for d in "01" for b in (16, 32))]
    forwards = "".join(FORWARD.format(name=name) for name in names)
    (directory / "region.py").write_text(REGION + forwards)
    (directory / "helper.py").write_text(HELPER.format(SOURCES[source]))
    result = subprocess.run(
        [sys.executable, "-c", MAIN, side, setting],
        env=os.environ
        | {
            "PYTHONPATH": f"{directory}{os.pathsep}{os.environ['PYTHONPATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "VLLM_CACHE_ROOT": str(root),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return found


def check(tmp_path: Path, order: list[tuple[str, str, str]]) -> None:
    """Four cells each; ours load what was kept with the same setting and source."""
    kept: dict[str, str] = {}  # setting -> source of the entries that are there
    for side, setting, source in order:
        found = run(tmp_path, tmp_path / "cache", side, setting, source)
        if side == "ours":
            loads = 4 if kept.get(setting) == source else 0
            assert found == {"graphs": 4 - loads, "loads": loads}, (setting, source)
            kept[setting] = source


REDUCED = [("stock", "none", "sin"), ("ours", "none", "sin"), ("ours", "none", "cos")]


@pytest.mark.slow  # three processes, each with four compilations
def test_some_cells(tmp_path: Path) -> None:
    check(tmp_path, REDUCED)


@pytest.mark.slow  # sixteen processes, each with four compilations
@pytest.mark.parametrize("reverse", [False, True])
def test_all_cells(reverse: bool, tmp_path: Path) -> None:
    cells = list(product(("stock", "ours"), ("none", "all"), SOURCES))
    if reverse:
        cells.reverse()
    check(tmp_path, [*cells, *cells])
