# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What may import what, by the contract and in a running interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"matplotlib", "numpy", "PIL", "torch", "transformers", "vllm"}


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`."""
    code += "\nimport json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_imports_run_downward() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "Contracts: 2 kept, 0 broken." in done.stdout


@pytest.mark.parametrize("name", ["catalog", "settings"])
def test_ground_floor_imports_nothing_of_ours(name: str) -> None:
    modules = imported_by(f"import vllm_mmc.{name}")
    ours = {m for m in modules if m.partition(".")[0] == "vllm_mmc"}
    assert ours == {"vllm_mmc", f"vllm_mmc.{name}"}


@pytest.mark.parametrize(
    "code",
    [
        "import vllm_mmc.plugin",
        "import mmc_testing",
        "import vllm_mmc.demo",
        "from vllm_mmc.cli.main import main; assert main(['list']) == 0",
    ],
)
def test_imports_nothing_heavy(code: str) -> None:
    assert {m.partition(".")[0] for m in imported_by(code)} & HEAVY == set()
