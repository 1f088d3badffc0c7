# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the scripts share: options, facts, processes, tables, JSON."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_mmc.prove import report
from vllm_mmc.prove.cases import CASES
from vllm_mmc.prove.report import print_table, spread

__all__ = ["print_table", "spread"]

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that every script has."""
    # Ended from outside it still ends its child and removes its directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--arch", choices=sorted(CASES), default=next(iter(CASES)))
    made.add_argument(
        "--json",
        type=Path,
        metavar="OUT",
        help=f"results (default: build/benchmarks/{name}-ARCH.json)",
    )
    return made


def numbers(text: str) -> list[int]:
    """Parses "4,8,32"."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError("positive numbers, separated by commas")
    return values


def default_output(name: str, arch: str) -> Path:
    return REPOSITORY / "build" / "benchmarks" / f"{name}-{arch}.json"


def environment() -> dict[str, Any]:
    """Returns what a figure depends on; no path and no name."""
    return report.environment() | _revision()


def _revision() -> dict[str, Any]:
    def git(*args: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Results are no part of what was measured.
        changes = git("status", "--porcelain", "--", ".", f":(exclude){RESULTS}")
        return {"git_sha": git("rev-parse", "HEAD"), "git_dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"git_sha": None, "git_dirty": None}


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {os.path.relpath(path)}", file=sys.stderr)


def cache_environment(root: Path, model_notes: Path) -> dict[str, str]:
    """Returns the environment that keeps all that a process caches under `root`.

    TMPDIR too: Inductor keeps precompiled headers there, whatever its own directory is.
    Only what vLLM notes of model classes is shared by all processes of a script: it is
    no compile cache, and asking anew costs a process that imports vLLM.
    """
    for directory in (root / "vllm", root / "tmp", model_notes):
        directory.mkdir(parents=True, exist_ok=True)
    notes = root / "vllm" / "modelinfos"
    if not notes.exists():
        notes.symlink_to(model_notes, target_is_directory=True)
    return {
        "VLLM_CACHE_ROOT": str(root / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "TMPDIR": str(root / "tmp"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The engine in the child itself, not in a child of it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }


def run_child(
    script: str,
    spec: Mapping[str, Any],
    directory: Path,
    env: Mapping[str, str],
    deadline_s: float = 3600,
) -> dict[str, Any]:
    """Runs `script --child SPEC` in a fresh process and returns what it found.

    The child reads `spec` and writes "found.json" beside it.

    Raises:
        RuntimeError: with the end of its output, if it fails or takes too long.
    """
    directory.mkdir(parents=True)
    file = directory / "spec.json"
    file.write_text(json.dumps(spec))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, script, "--child", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            code = f"nothing after {deadline_s:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise RuntimeError(f"{spec}: ended with {code}:\n{tail}")
    return json.loads((directory / "found.json").read_text())
