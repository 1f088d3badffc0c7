# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What is in the wheel, and what an editable install puts on the path."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import vllm_mmc

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_{}({!r}))"
HELP = """
import sys
sys.path.insert(0, {!r})
from vllm_mmc.cli.main import main
from vllm_mmc.demo import media
assert all((media.DATA / name).is_file() for name in ("photograph.jpg", "speech.ogg"))
main(["demo", "--help"])
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is tracked: building leaves files behind."""
    to = tmp_path_factory.mktemp("checkout")
    for name in ("vllm_mmc", "mmc_testing", "tools", "tests", "csrc"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, to / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    return to


def build(kind: str, checkout: Path, to: Path) -> zipfile.ZipFile:
    """Without a compiler: the extension is optional, and takes its time."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind, str(to))],
        cwd=checkout,
        env=os.environ | {"CC": "false", "CXX": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(to / done.stdout.splitlines()[-1])


def test_the_wheel_has_the_product_alone(checkout: Path, tmp_path: Path) -> None:
    with build("wheel", checkout, tmp_path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "site")
    assert {name.partition("/")[0] for name in names} == {"vllm_mmc"}
    expected = {str(p.relative_to(ROOT)) for p in ROOT.glob("vllm_mmc/**/*.py")}
    data = {str(p.relative_to(ROOT)) for p in ROOT.glob("vllm_mmc/demo/data/*")}
    assert len(data) == 3
    assert names == expected | data | {"vllm_mmc/py.typed"}
    assert sum((ROOT / name).stat().st_size for name in data) < 100_000

    # Its demo offers what it can write: -S leaves out this environment's checkout.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", HELP.format(str(tmp_path / "site"))],
        capture_output=True,
        text=True,
    )
    assert "--model {qwen2_5_vl,whisper}" in done.stdout, done.stdout + done.stderr


def test_the_version_that_is_cited_is_this_one() -> None:
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert version == vllm_mmc.__version__


def test_forms_and_workflows_are_yaml_and_call_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    files = [*ROOT.glob(".github/**/*.yml")]
    assert len(files) >= 5
    for file in files:
        found = yaml.safe_load(file.read_text())
        for job in found.get("jobs", {}).values():
            assert "timeout-minutes" in job and job["steps"]
            for value in job.get("strategy", {}).get("matrix", {}).get("half", ()):
                assert value in targets
    called = re.findall(r"run: make ([a-z-]+)", "".join(f.read_text() for f in files))
    assert called and set(called) <= targets


def test_an_editable_install_has_the_checkout_on_the_path(
    checkout: Path, tmp_path: Path
) -> None:
    with build("editable", checkout, tmp_path) as wheel:
        (pth,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        assert Path(wheel.read(pth).decode().strip()) == checkout
