# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc demo`, which `make demo` runs: three real engine starts that agree."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("model", "graphs"),
    [
        ("qwen2_5_vl", "3"),
        # Three more engines; tests/e2e/test_serve.py starts two with Llama4.
        pytest.param("llama4", "4", marks=pytest.mark.slow),
    ],
)
def test_demo(model: str, graphs: str) -> None:
    command = Path(sys.executable).with_name("vllm-mmc")
    result = subprocess.run(
        [command, "demo", "--model", model, "--depth", "4"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {
        cells[0]: cells[1:]
        for line in result.stdout.splitlines()
        if len(cells := [c.strip() for c in line.strip("│┃ ").split("│")]) == 4
    }
    assert rows["encoder graphs compiled"] == ["0", graphs, "0"]
