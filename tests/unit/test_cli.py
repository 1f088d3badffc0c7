# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The `vllm-mmc` command."""

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_mmc import __version__
from vllm_mmc.catalog import CATALOG
from vllm_mmc.cli.main import main


def test_list_prints_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    # Columns are as wide as their rule, two blanks apart.
    ends = [0]
    for dashes in rule.split("  "):
        ends.append(ends[-1] + len(dashes) + 2)

    def cells(line: str) -> tuple[str, ...]:
        bounds = zip(ends[:-1], ends[1:], strict=True)
        return tuple(line[start:end].strip() for start, end in bounds)

    assert cells(header) == ("architecture", "regions", "stock vLLM compiles")
    assert [cells(row) for row in rows] == [
        (e.architecture, ", ".join(e.regions), e.stock) for e in CATALOG
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
