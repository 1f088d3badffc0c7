# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Builds the source archive and the wheel, and tries the wheel: `make package`.

The wheel is built from the source archive, so a file that the archive lacks is noticed.
It is installed into a fresh environment, which sees vLLM of the environment that runs
this script, but not the checkout.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST, FRESH = ROOT / "build/dist", ROOT / "build/fresh"
TRY = """
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
import vllm_mmc
from vllm_mmc.demo import media, offered
here = Path(vllm_mmc.__file__).parent
assert here.is_relative_to(sys.prefix), here
assert version("vllm-mmc") == vllm_mmc.__version__
(plugin,) = entry_points(group="vllm.general_plugins", name="mmc")
plugin.load()
assert offered() == ("qwen2_5_vl", "whisper")  # mmc_testing is not here
assert media.photograph().size == (512, 600) and len(media.speech(1.0)) == 16000
assert list(here.glob("_cpu*")), "the kernel was not built"
print(here, "is complete")
"""


def main() -> None:
    for directory in (DIST, FRESH):
        shutil.rmtree(directory, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
    run(sys.executable, "-m", "venv", FRESH)
    (wheel,) = DIST.glob("*.whl")
    python = FRESH / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    (packages,) = FRESH.glob("lib/*/site-packages")
    (packages / "vllm.pth").write_text(sysconfig.get_path("purelib"))
    run(python, "-c", TRY)
    run(FRESH / "bin/vllm-mmc", "list")
    print(f"{wheel.name}: {wheel.stat().st_size / 1000:.0f} kB")


def run(*command: str | Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    output = subprocess.DEVNULL if command[-1] == "list" else None
    subprocess.run(command, cwd=ROOT / "build", env=env, stdout=output, check=True)


if __name__ == "__main__":
    (ROOT / "build").mkdir(exist_ok=True)
    main()
