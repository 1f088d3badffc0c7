# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc demo`, which `make demo` runs: three real engine starts that agree, stock
against ours with an empty and with a full cache. For most families of audio it is the
test of a real engine: greedy answers to speech of 0.3 s to half a minute and more.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_mmc.catalog import CATALOG
from vllm_mmc.demo import SHIPPED

# Pictures of Qwen3-Omni and Clef-Omni (tests/models/test_second_tower.py) are surveyed:
# patches, block and two mergers.
GRAPHS = {
    e.family: len(e.regions) + 4 * bool(e.mixin and e.regions == ("audio block",))
    for e in CATALOG
}


@pytest.mark.parametrize(
    "model",
    [
        # Three engines each.
        pytest.param(name, marks=() if name == SHIPPED[0] else pytest.mark.slow)
        for name in GRAPHS
    ],
)
def test_demo(model: str) -> None:
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
    graphs = str(GRAPHS[model])
    assert rows["encoder graphs compiled"] == ["0", graphs, "0"]
