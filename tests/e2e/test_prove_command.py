# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc prove` on a CPU: the steps of a GPU, with stand-ins, at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_mmc.demo import SHIPPED
from vllm_mmc.prove.encoders import GRAPH
from vllm_mmc.prove.providers import OURS


@pytest.mark.slow  # four engines and an encoder's process, for each of two families
def test_prove(tmp_path: Path) -> None:
    output = tmp_path / "prove.json"
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("vllm-mmc"), "prove", "--device", "cpu"),
            *("--quick", "--families", ",".join(SHIPPED), "--json", output),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["problems"] == []
    for rows in found["engines"].values():
        compiled, warm = rows[2:]
        assert compiled["graphs"] == warm["from the cache"] > 0
        assert warm["graphs"] == 0
        assert all(row["largest difference"] <= 1e-4 for row in rows)
    for measured in found["encoders"]:
        rows = {row["provider"]: row for row in measured["rows"]}
        assert rows[OURS]["equal"] and rows[GRAPH]["equal"]
        assert rows[OURS]["kernels"] > 0
        assert rows["floor"]["median_ms"] > 0
