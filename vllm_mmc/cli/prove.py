# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc prove`: is it right and is it fast on this machine, in one table."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_mmc.cli import demo
from vllm_mmc.demo import SHIPPED, offered

if TYPE_CHECKING:
    from vllm_mmc.demo.probe import Findings
    from vllm_mmc.prove.encoders import Plan

GRAPHS = {
    "compilation_config": {"compile_mm_encoder": True, "cudagraph_mm_encoder": True}
}
RUNNERS = {"V1": "0", "V2": "1"}
"""vLLM's model runner -> value of VLLM_USE_V2_MODEL_RUNNER."""
COLUMNS = {
    "encoder": "arch",
    "size": "size",
    "side": "provider",
    "median ms": "median_ms",
    "p20": "p20_ms",
    "p80": "p80_ms",
    "kernels": "kernels",
    "error": "rms_to_truth",
    "allowed": "rms_allowed",
}
DEADLINE_S = 900
# Triton's attention multiplies float32 as TF32, which has 10 bits: one rounding of it.
# Measured on an H200: 1.1e-4.
TOLERANCES = {"cuda": 2**-11, "cpu": demo.TOLERANCE}


@dataclass(frozen=True)
class Start:
    """One engine start.

    Attributes:
        runner: a key of `RUNNERS`.
        case: what is started.
    """

    runner: str
    case: demo.DemoRun


def add_parser(subparsers: Any) -> None:
    """Adds `prove` to the commands of `vllm-mmc`."""
    help = "prove on this machine that compiled encoders are right, and how fast"
    parser = subparsers.add_parser(
        "prove",
        help=help,
        description=(
            "Writes tiny checkpoints, starts real engines (stock eager, ours eager, "
            "compiled, with CUDA graphs; vLLM's model runners V1 and V2), compares "
            "answers and embeddings, then times encoders at published sizes, side by "
            "side. Needs no network. Exit status 1 if anything differs, or the host "
            "waits for the device inside of an encoder."
        ),
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="what vLLM is installed for; on a CPU stand-ins go the same way "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--families",
        help="separated by commas (default: engines of "
        f"{', '.join(SHIPPED)}, encoders of all that are measured)",
    )
    parser.add_argument(
        "--no-engines",
        action="store_true",
        help="encoders alone, as with a vLLM that this package is not tested with",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny encoders, one size, few rounds"
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="results (default: prove.json)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs all steps, prints the tables and writes the JSON.

    Returns:
        0 if all is as it must be, 1 if not, 2 for a device or family that is not there.
    """
    import torch

    from vllm_mmc.prove import cases, encoders, report

    asked = None if args.families is None else tuple(args.families.split(","))
    if asked is not None and (unknown := {*asked} - {*offered()}):
        return _fail(f"no such family here: {', '.join(sorted(unknown))}")
    if (args.device == "cuda") != torch.cuda.is_available():
        there = "a" if torch.cuda.is_available() else "no"
        return _fail(f"--device {args.device}, but PyTorch finds {there} GPU")
    found: dict[str, Any] = {"environment": report.environment(), "device": args.device}
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-prove-") as name:
        directory = Path(name)
        found["engines"] = {}
        for family in () if args.no_engines else asked or SHIPPED:
            rows, differences = _engines(family, args.device, directory / family)
            found["engines"][family] = rows
            problems += differences
        found["encoders"], found["left_out"] = [], {}
        for plan in encoders.plans(asked or offered(), quick=args.quick):
            if (reason := cases.CASES[plan.arch].why_not()) is not None:
                print(f"encoder {plan.arch}: left out: {reason}", file=sys.stderr)
                found["left_out"][plan.arch] = reason
                continue
            print(f"encoder {plan.arch}: measuring ...", file=sys.stderr)
            try:
                measured = measure(plan, directory / f"encoder-{plan.arch}")
            except RuntimeError as error:
                problems.append(f"{plan.arch}: {error}")
                continue
            found["encoders"].append(measured)
            problems += encoders.problems(measured)
    found["problems"] = problems
    print(json.dumps(found["environment"], indent=1))
    engines = {family: rows for family, rows in found["engines"].items() if rows}
    for family, rows in engines.items():
        print(f"\n{family}, tiny, whole engines\n")
        report.print_table(list(rows[0]), [list(row.values()) for row in rows])
    print("\nOne call of an encoder; floor: the larger of FLOP and bytes\n")
    report.print_table(list(COLUMNS), _encoder_rows(found["encoders"]))
    output = args.json or Path("prove.json")
    output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten: {output}", file=sys.stderr)
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _fail(reason: str) -> int:
    print(f"vllm-mmc prove: {reason}", file=sys.stderr)
    return 2


def starts(device: str) -> list[Start]:
    """Returns the engines that are started; the first of them is the truth."""
    cases = [
        demo.RUNS[0],
        demo.DemoRun("ours, eager", demo.EAGER, "mmc", demo.OUR_MODULE),
        *demo.RUNS[1:],
    ]
    if device == "cpu":  # vLLM's V2 runner needs Triton there
        return [Start("V1", case) for case in cases]
    graphs = demo.DemoRun("vllm_mmc, CUDA graphs", GRAPHS, "mmc", demo.OUR_MODULE)
    # The runners differ in how they call an encoder, and what they call is the same.
    return [*(Start("V2", case) for case in (*cases, graphs)), Start("V1", graphs)]


def _engines(
    family: str, device: str, directory: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Starts the engines of one family: a row each, and what differs."""
    from vllm_mmc.demo import families
    from vllm_mmc.demo.probe import Probe

    recipe = families.family(family)
    directory.mkdir()
    demo.link_model_notes(directory / "cache")
    on_gpu: dict[str, Any] = {}
    if device == "cuda":
        # In float32, which FlashAttention does not have; PyTorch's cannot be captured.
        on_gpu["mm_encoder_attn_backend"] = "TRITON_ATTN"
        # vLLM asks for a share of the whole GPU to be free; tiny models need little.
        on_gpu["gpu_memory_utilization"] = 0.1
    asked = starts(device)
    found: list[Findings] = []
    for i, start in enumerate(asked):
        place = directory / str(i)
        place.mkdir()
        probe = Probe(
            checkpoint=str(directory / "checkpoint"),
            family=family,
            depth=2,
            engine_args={**start.case.engine_args, **on_gpu},
            prompts=[list(items) for items in recipe.samples],
        )
        env = {
            "VLLM_CACHE_ROOT": str(directory / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(directory / "cache" / "inductor"),
            "VLLM_PLUGINS": start.case.plugins,
            "VLLM_USE_V2_MODEL_RUNNER": RUNNERS[start.runner],
        }
        label = f"{family} {start.runner} [{i + 1}/{len(asked)}] {start.case.name}"
        try:
            found.append(demo.run_case(label, probe, place, env))
        except RuntimeError as error:
            return [], [f"{label}: {error}"]
    cases = [start.case for start in asked]
    rows = [
        _engine_row(start, seen, found[0])
        for start, seen in zip(asked, found, strict=True)
    ]
    problems = demo.differences(cases, found, TOLERANCES[device])
    return rows, [f"{family}: {problem}" for problem in problems]


def _engine_row(start: Start, seen: "Findings", truth: "Findings") -> dict[str, Any]:
    return {
        "engine": start.case.name,
        "runner": start.runner,
        "start s": seen.start_seconds,
        "compile s": seen.compile_seconds,
        "graphs": seen.graphs,
        "from the cache": seen.artifact_loads,
        "call ms": seen.encoder_ms,
        "largest difference": demo.largest_difference(seen, truth),
    }


def measure(plan: "Plan", directory: Path) -> dict[str, Any]:
    """Runs `vllm_mmc.prove.encoders` in a process of its own, with empty caches.

    Raises:
        RuntimeError: with the end of its output, if it fails or takes too long.
    """
    directory.mkdir()
    (directory / "spec.json").write_text(json.dumps(asdict(plan)))
    log = directory / "log"
    with log.open("wb") as output:
        try:
            status: int | str = subprocess.run(
                [
                    *(sys.executable, "-m", "vllm_mmc.prove.encoders"),
                    str(directory / "spec.json"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_caches(directory)},
                timeout=DEADLINE_S,
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"nothing after {DEADLINE_S} s"
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"ended with {status}:\n{tail}")
    return dict(json.loads((directory / "found.json").read_text()))


def _caches(directory: Path) -> Mapping[str, str]:
    return {
        "VLLM_CACHE_ROOT": str(directory / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(directory / "inductor"),
        "VLLM_PLUGINS": "",  # the towers are built by name
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _encoder_rows(found: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for measured in found:
        for row in measured["rows"]:
            named = {**row, "arch": measured["plan"]["arch"]}
            yield [named.get(key) for key in COLUMNS.values()]
