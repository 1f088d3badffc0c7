# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc demo`: the same requests to stock vLLM and to vLLM with this package."""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm_mmc.demo import SHIPPED, offered

if TYPE_CHECKING:
    from vllm_mmc.demo.probe import Findings, Probe

# float32 embeddings with a spread of about 0.6; reordered additions cost about 1e-5.
TOLERANCE = 1e-4
DEADLINE_S = 900

EAGER = {"enforce_eager": True}
COMPILED = {"compilation_config": {"compile_mm_encoder": True}}
STOCK_MODULE, OUR_MODULE = "vllm.", "vllm_mmc."


@dataclass(frozen=True)
class DemoRun:
    """One engine start.

    Attributes:
        name: column of the table.
        engine_args: for the engine.
        plugins: value of VLLM_PLUGINS.
        module: prefix of the module that the loaded model must come from.
    """

    name: str
    engine_args: dict[str, Any]
    plugins: str
    module: str


RUNS = (
    DemoRun("stock vLLM, eager", EAGER, "", STOCK_MODULE),
    DemoRun("vllm_mmc, empty cache", COMPILED, "mmc", OUR_MODULE),
    DemoRun("vllm_mmc, warm cache", COMPILED, "mmc", OUR_MODULE),
)


def add_parser(subparsers: Any) -> None:
    """Adds `demo` to the commands of `vllm-mmc`."""
    parser = subparsers.add_parser(
        "demo",
        help="compare stock and compiled encoders on this machine",
        description=(
            "Writes a tiny checkpoint, starts the real vLLM engine three "
            "times (stock and eager; vllm_mmc with an empty compile cache; the same "
            "cache again), sends each the same photographs or recorded voice and "
            "compares. Exit status 1 if any answer or embedding differs."
        ),
    )
    parser.add_argument(
        "--model",
        choices=offered(),
        default=SHIPPED[0],
        help="kind of checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--depth",
        type=_depth,
        default=8,
        help="encoder blocks, at least 2 (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the comparison and prints the table.

    Returns:
        0 if all answers and embeddings agree, else 1.
    """
    from vllm_mmc.demo import families
    from vllm_mmc.demo.probe import Probe

    family = families.family(args.model)
    try:
        family.request(family.samples[0])
    except ImportError as error:
        print(f"vllm-mmc demo: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-demo-") as name:
        directory = Path(name)
        # Where vLLM notes what it knows of a model class. Not a compile cache, and
        # asking anew costs a process that imports vLLM: keep the user's.
        cache = directory / "cache"
        link_model_notes(cache)
        env = {
            "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        }
        found: list[Findings] = []
        for i, case in enumerate(RUNS):
            probe = Probe(
                checkpoint=str(directory / f"tiny-{args.model}"),
                family=args.model,
                depth=args.depth,
                engine_args=case.engine_args,
                prompts=[list(items) for items in family.samples],
            )
            label = f"[{i + 1}/{len(RUNS)}] {case.name}"
            place = directory / f"case{i}"
            place.mkdir()
            env["VLLM_PLUGINS"] = case.plugins
            try:
                found.append(run_case(label, probe, place, env))
            except RuntimeError as error:
                print(f"vllm-mmc demo: {case.name}: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                return 130
    print()
    print_table(["", *(case.name for case in RUNS)], _rows(found))
    largest = family.describe(max(item for items in family.samples for item in items))
    print(
        f"\n{family.title}, {args.depth} encoder blocks, float32, one thread. Answers "
        f"are the greedy tokens to {len(family.samples)} prompts.\nThe weights are "
        "random: what counts is that answers are equal, and how long they take.\n"
        f"Embeddings may differ by at most {TOLERANCE:g}. Encoder: median time of one "
        f"call, {largest}."
    )
    problems = differences(RUNS, found)
    if not problems:
        print("All answers and embeddings agree.")
    for problem in problems:
        print(f"DIFFERS: {problem}", file=sys.stderr)
    return 1 if problems else 0


def differences(
    cases: Sequence[DemoRun],
    found: Sequence["Findings"],
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Returns, in words, all that is not as it must be; the first case is the truth."""
    truth = found[0]
    problems = []
    for case, seen in zip(cases, found, strict=True):
        if not seen.model.startswith(case.module):
            problems.append(
                f"{case.name}: loaded {seen.model}, expected one of {case.module}*"
            )
        for i, (ours, theirs) in enumerate(zip(seen.tokens, truth.tokens, strict=True)):
            if ours != theirs:
                problems.append(f"{case.name}: prompt {i + 1}: {ours}, eager {theirs}")
        if not largest_difference(seen, truth) <= tolerance:
            problems.append(
                f"{case.name}: embeddings differ by {largest_difference(seen, truth):g}"
            )
    return problems


def largest_difference(seen: "Findings", truth: "Findings") -> float:
    """Returns the largest absolute difference of two embeddings.

    NaN if either side has a NaN, infinity if the encoder calls or their shapes differ.
    """
    import numpy as np

    shapes = [array.shape for array in seen.embeddings]
    if not shapes or shapes != [array.shape for array in truth.embeddings]:
        return float("inf")
    pairs = zip(seen.embeddings, truth.embeddings, strict=True)
    return float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs]))


def _depth(text: str) -> int:
    depth = int(text)
    if depth < 2:
        raise argparse.ArgumentTypeError(
            "at least 2: one block that attends within windows and one that does not"
        )
    return depth


def run_case(
    label: str, probe: "Probe", directory: Path, env: Mapping[str, str]
) -> "Findings":
    from vllm_mmc.demo.probe import Run

    alive = sys.stderr.isatty()
    started = time.monotonic()
    print(f"{label}: starting ...", file=sys.stderr, end="" if alive else "\n")
    try:
        with Run(probe, directory, env) as running:
            while not running.finished():
                time.sleep(0.25)
                seconds = time.monotonic() - started
                if seconds > DEADLINE_S:
                    raise RuntimeError(f"not finished after {seconds:.0f} s")
                if alive:
                    text = f"\r{label}: running {seconds:4.0f} s "
                    print(text, file=sys.stderr, end="", flush=True)
            findings = running.findings()
    finally:
        if alive:
            print("\r\033[K", file=sys.stderr, end="")
    seconds = time.monotonic() - started
    print(f"{label}: done in {seconds:.0f} s", file=sys.stderr)
    return findings


def link_model_notes(cache: Path) -> None:
    user_cache = os.environ.get("VLLM_CACHE_ROOT") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vllm"
    )
    notes = Path(user_cache).expanduser().absolute() / "modelinfos"
    cache.mkdir()
    with contextlib.suppress(OSError):
        notes.mkdir(parents=True, exist_ok=True)
        (cache / "modelinfos").symlink_to(notes, target_is_directory=True)


def _rows(found: Sequence["Findings"]) -> list[list[str]]:
    """One row per measure: its name, then each engine's value."""
    truth = found[0]

    def same(seen: "Findings") -> str:
        pairs = zip(seen.tokens, truth.tokens, strict=True)
        return f"{sum(a == b for a, b in pairs)} of {len(truth.tokens)}"

    def distance(seen: "Findings") -> str:
        return "-" if seen is truth else f"{largest_difference(seen, truth):.1e}"

    def model(seen: "Findings") -> str:
        name = seen.model.partition(":")[2]
        return name.removesuffix("ForConditionalGeneration")

    measures: dict[str, Callable[[Findings], str]] = {
        "model loaded": model,
        "answers equal to eager": same,
        "largest embedding difference": distance,
        "encoder graphs compiled": lambda seen: str(seen.graphs),
        "encoder graphs from the cache": lambda seen: str(seen.artifact_loads),
        "encoder compile seconds": lambda seen: f"{seen.compile_seconds:.1f}",
        "engine start seconds": lambda seen: f"{seen.start_seconds:.1f}",
        "encoder milliseconds per call": lambda seen: f"{seen.encoder_ms:.1f}",
    }
    return [[name, *map(value, found)] for name, value in measures.items()]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain_table(header, rows)
        return
    table = Table()
    for i, title in enumerate(header):
        justify: Literal["left", "right"] = "right" if i else "left"
        table.add_column(title, justify=justify, no_wrap=not i, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _print_plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())
