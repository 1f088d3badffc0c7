# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The repair of torchvision, on stand-in packages in a directory of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import setup_cpu as repair

# As much of torch and torchvision as the repair and its checks touch.
TORCH = """
from types import SimpleNamespace

DEFINED = set()

def register_fake(op):
    if op not in DEFINED:
        raise RuntimeError(f"operator {op} does not exist")

library = SimpleNamespace(
    define=lambda op, schema: DEFINED.add(op), register_fake=register_fake
)

def zeros(*shape):
    return SimpleNamespace(shape=shape)
"""
EXTENSION = """
import torch

def _has_ops():
    return {loads}

if _has_ops():
    torch.library.define("torchvision::nms", "C")
    torch.library.define("torchvision::qnms", "C")
"""
TORCHVISION = """
import torch
from . import extension
torch.library.register_fake("torchvision::nms")
torch.library.register_fake("torchvision::qnms")
"""
FUNCTIONAL = """
from types import SimpleNamespace

def resize(image, size):
    return SimpleNamespace(shape=(image.shape[0], *size))
"""


class Tree:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.extension = root / "torchvision" / "extension.py"

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def torchvision(self, *, loads: bool) -> None:
        self.write("torch/__init__.py", TORCH)
        self.write("torchvision/__init__.py", TORCHVISION)
        self.write("torchvision/extension.py", EXTENSION.format(loads=loads))
        self.write("torchvision/transforms/__init__.py", "")
        self.write("torchvision/transforms/v2/__init__.py", "")
        self.write("torchvision/transforms/v2/functional.py", FUNCTIONAL)

    def package(self, name: str, source: str) -> None:
        self.write(f"{name}/__init__.py", source)
        self.write(
            f"{name}-1.0.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        )

    def state(self) -> dict[str, tuple[bytes, int]]:
        return {
            str(file.relative_to(self.root)): (
                file.read_bytes(),
                file.stat().st_mtime_ns,
            )
            for file in sorted(self.root.rglob("*"))
            if file.is_file() and file.suffix != ".pyc"
        }


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Tree(tmp_path)


def test_healthy_torchvision_is_not_touched(tree: Tree) -> None:
    tree.torchvision(loads=True)
    before = tree.state()
    assert "left as it is" in repair.repair_torchvision()
    assert tree.state() == before


def test_broken_torchvision_is_repaired_once(tree: Tree) -> None:
    tree.torchvision(loads=False)
    original = tree.extension.read_text()
    assert repair.failure("import torchvision") == repair.SYMPTOM

    assert "repaired" in repair.repair_torchvision()
    assert repair.failure("import torchvision") is None
    assert tree.extension.read_text() == original + repair.BLOCK

    repaired = tree.state()
    assert "left as it is" in repair.repair_torchvision()
    assert tree.state() == repaired


def test_repair_steps_aside_once_the_extension_loads(tree: Tree) -> None:
    tree.torchvision(loads=False)
    repair.repair_torchvision()
    code = "import torchvision, torch; assert not torch.DEFINED, torch.DEFINED"
    assert "nms" in (repair.failure(code) or "")

    text = tree.extension.read_text().replace("return False", "return True")
    text = text.replace('"C"', '"from C"')
    tree.extension.write_text(text)
    guard = (
        "import torch; seen = []\n"
        "torch.library.define = lambda op, s: (seen.append(s), torch.DEFINED.add(op))\n"
        "import torchvision; assert seen == ['from C'] * 2, seen"
    )
    assert repair.failure(guard) is None


def test_repair_leaves_files_shared_by_hard_link_alone(
    tree: Tree, tmp_path: Path
) -> None:
    tree.torchvision(loads=False)
    shared = tmp_path / "installer-cache.txt"
    shared.hardlink_to(tree.extension)
    original = shared.read_bytes()
    repair.repair_torchvision()
    assert shared.read_bytes() == original
    assert tree.extension.read_bytes() != original


@pytest.mark.parametrize(
    "source",
    [
        "raise ImportError('libsomething.so is missing')",
        "raise RuntimeError('operator torchvision::roi_align does not exist')",
    ],
)
def test_any_other_failure_is_reported_in_one_line(
    tree: Tree, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    tree.torchvision(loads=False)
    tree.write("torchvision/__init__.py", source)
    before = tree.state()
    assert repair.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert source.split("'")[1] in line
    assert tree.state() == before


def test_repair_that_does_not_hold_is_undone(tree: Tree) -> None:
    tree.torchvision(loads=False)
    tree.write("torchvision/transforms/v2/functional.py", "raise ImportError('gone')")
    original = tree.extension.read_text()
    with pytest.raises(repair.SetupError, match="does not hold.*gone"):
        repair.repair_torchvision()
    assert tree.extension.read_text() == original


def test_only_a_package_that_cannot_load_is_removed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.package("mmc_healthy", "")
    tree.package("mmc_broken", "raise OSError('libcudart.so.13: cannot open')")
    asked: list[tuple[str, ...]] = []

    def no_pip(*args: str) -> subprocess.CompletedProcess[str]:
        if args[0] != "-m":
            return run(*args)
        asked.append(args)
        (tree.root / f"{args[-1]}-1.0.dist-info" / "METADATA").unlink()
        (tree.root / f"{args[-1]}-1.0.dist-info").rmdir()
        return subprocess.CompletedProcess(args, 0, "", "")

    run = repair.run
    monkeypatch.setattr(repair, "run", no_pip)
    assert "left as it is" in repair.remove_if_broken("mmc_healthy")
    assert "not installed" in repair.remove_if_broken("mmc_absent")
    assert asked == []
    assert "removed" in repair.remove_if_broken("mmc_broken")
    assert asked == [("-m", "pip", "uninstall", "--yes", "mmc_broken")]


def test_package_that_pip_cannot_remove_is_reported(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in lies outside the environment, where pip truly declines to remove it.
    tree.package("mmc_broken", "raise OSError('libcudart.so.13: cannot open')")
    with pytest.raises(repair.SetupError, match="cannot remove mmc_broken"):
        repair.remove_if_broken("mmc_broken")


def test_the_script_itself_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({repair.__file__!r})\n"
        "assert not {'torch', 'torchvision', 'vllm', 'vllm_mmc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_installed_torchvision_imports_and_resizes() -> None:
    code = repair.RESIZE + (
        "import torch\n"
        "for op in ('nms', 'qnms'):\n"
        "    schema = str(getattr(torch.ops.torchvision, op).default._schema)\n"
        "    assert schema == f'torchvision::{op}(Tensor dets, Tensor scores, '"
        " 'float iou_threshold) -> Tensor', schema\n"
    )
    assert repair.failure(code) is None
