# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Proves the patches of encoders: `make prove-patches`.

    python upstream/models/prove.py [FAMILY ...] [pytest's options]

Of each family, on a copy of vLLM: `test.py` fails; with the patch, those it builds on
and the findings that CPU needs, `test.py` and `equality.py` pass. This package is
switched off. Cases marked slow run with `-m ''`.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / "tools")]

import check  # noqa: E402
import make_patches  # noqa: E402

CPU = ("cpu_artifacts_load", "encoder_warmup_inference_mode", "artifact_key")
"""Findings: without them no encoder is compiled on CPU, or each layer anew."""
MEMBERS = {
    "whisper": "whisper or ultravox or voxtral or kimi or moss",
    "llama4": "llama4",
    "qwen3_audio": "qwen3",
    "qwen2_audio": "qwen2 or flamingo",
}


def tested(copy: Path, *args: str) -> int:
    env = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{ROOT}", "VLLM_PLUGINS": ""}
    options = ["-q", "--tb=short", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *args]
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def prove(family: str, options: list[str]) -> str | None:
    """None, or what is not as it should be."""
    own = f"upstream/models/{family}/test.py"
    patches = [check.HERE / name / "change.patch" for name in CPU]
    for name in (*make_patches.FAMILIES[family].after, family):
        patches.append(HERE / name / "change.patch")
    with check.copied(check.installed()) as copy:
        if tested(copy, own) != 1:
            return "test.py does not fail without the patch"
        for patch in patches:
            if said := check.apply(patch, copy):
                return f"{patch.relative_to(ROOT)} does not apply:\n{said}"
        if tested(copy, own, *options):
            return "test.py fails with the patch"
        equality = ("upstream/models/equality.py", "-k", MEMBERS[family])
        if tested(copy, *equality, *options):
            return "equality.py fails with the patch"
    return None


def main() -> int:
    names = [name for name in sys.argv[1:] if name in MEMBERS]
    options = [option for option in sys.argv[1:] if option not in MEMBERS]
    told = {name: prove(name, options) for name in names or MEMBERS}
    for name, said in told.items():
        print(f"{name:16} {said or 'the patch is right'}")
    return int(any(told.values()))


if __name__ == "__main__":
    sys.exit(main())
