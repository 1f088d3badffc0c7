# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Runs vLLM's own tests against this package: `make test-upstream`.

upstream/vllm_tests.toml names the files, what of this package takes the place of vLLM's
in each of them, and why the other files are left out. The tests come from vLLM's source
distribution and lie in `.vllm`; they are not part of this repository.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "upstream/vllm_tests.toml"
DEFAULTS: dict[str, Any] = {"ours": "", "checkpoint": "", "text": {}, "without": {}}


def download(release: str, directory: Path) -> None:
    """Fill `directory` with vLLM's `tests/` and `pyproject.toml`."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-clean"]
        pip += ["--no-binary", ":all:", "--no-build-isolation", "--dest", folder]
        # pip unpacks a source distribution to ask for its metadata. Without vLLM's
        # build tools that step fails, and what was unpacked stays.
        subprocess.run(
            [*pip, f"vllm=={release}"],
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
        )
        found = [path.parent for path in Path(folder).rglob("tests/conftest.py")]
        if not found:
            sys.exit(f"pip found no source distribution of vLLM {release}")
        source = min(found, key=lambda path: len(path.parts)).parent
        directory.mkdir(parents=True)
        shutil.copy(source / "pyproject.toml", directory)
        shutil.copytree(source / "tests", directory / "tests")


def copy(row: dict[str, Any], root: Path) -> None:
    """Write the file of a row anew, with the row's text in the place of vLLM's.

    Raises:
        ValueError: The file does not have a text that the row replaces.
    """
    file, kept = root / row["file"], root / "pristine" / row["file"]
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept)
    text = kept.read_text()
    for old, new in row["text"].items():
        if old not in text:
            raise ValueError(f"{row['file']} does not have: {old}")
        text = text.replace(old, new)
    file.unlink()
    file.write_text(text)


def run(rows: list[dict[str, Any]], root: Path, *pytest_args: str) -> int:
    """Runs files with the same stand-ins; returns pytest's exit status."""
    left_out = [f"{row['file']}::{test}" for row in rows for test in row["without"]]
    path = [str(ROOT), str(root / "packages"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "mmc_testing.stand_in"),
            *(row["file"] for row in rows),
            *(f"--deselect={test}" for test in left_out),
            *pytest_args,
        ],
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "VLLM_MMC_STAND_IN": rows[0]["ours"],
            "VLLM_MMC_CHECKPOINT": rows[0]["checkpoint"],
            "HF_HUB_OFFLINE": "1",
        },
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where vLLM's tests lie")
    parser.add_argument("-k", dest="file", default="", help="part of a file's name")
    parser.add_argument("pytest_args", nargs="*")
    args = parser.parse_args()
    release = importlib.metadata.version("vllm").partition("+")[0]
    source = args.directory.resolve() / f"tests-{release}"
    if not source.exists():
        download(release, source)
        packages = tomllib.loads(TABLE.read_text())["packages"]
        target = ["--target", str(source / "packages")]
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", *target, *packages]
        subprocess.run(pip, check=True)
    rows = [{**DEFAULTS, **row} for row in tomllib.loads(TABLE.read_text())["test"]]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if args.file in row["file"]:
            copy(row, source)
            groups.setdefault((row["ours"], row["checkpoint"]), []).append(row)
    return max(run(group, source, *args.pytest_args) for group in groups.values())


if __name__ == "__main__":
    sys.exit(main())
