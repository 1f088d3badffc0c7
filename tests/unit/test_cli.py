# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The `vllm-mmc` command."""

import subprocess
import sys
from pathlib import Path

import pytest
from vllm.model_executor.models import registry

from vllm_mmc import __version__
from vllm_mmc.catalog import CATALOG, EAGER, surveyed
from vllm_mmc.cli.main import main


def cells(table: str) -> list[tuple[str, ...]]:
    """Columns are as wide as their rule, two blanks apart."""
    header, rule, *rows = table.splitlines()
    ends = [0]
    for dashes in rule.split("  "):
        ends.append(ends[-1] + len(dashes) + 2)
    bounds = list(zip(ends[:-1], ends[1:], strict=True))
    return [
        tuple(line[start:end].strip() for start, end in bounds)
        for line in (header, *rows)
    ]


def test_list_prints_every_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    by_file, others = map(cells, capsys.readouterr().out.split("\n\n"))
    assert by_file == [
        ("architecture", "regions", "stock vLLM compiles"),
        *((e.architecture, ", ".join(e.regions), e.stock) for e in CATALOG),
    ]
    names = surveyed(registry._MULTIMODAL_MODELS, registry._VLLM_MODELS, "1")
    assert len(names) > 100
    assert others == [
        ("architecture", "how"),
        *((name, "by survey") for name in names),
        *((name, f"eager: {reason}") for name, reason in EAGER.items()),
    ]


def test_installed_command_and_version() -> None:
    command = Path(sys.executable).with_name("vllm-mmc")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("argv", [["dance"], []])
def test_no_such_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: vllm-mmc" in printed.err
    assert "dance" in printed.err or not argv
