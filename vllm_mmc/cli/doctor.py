# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc doctor`: is the encoder of this model compiled, and if not, why?"""

import argparse
from typing import Any

from vllm_mmc.cli.engine import EncoderReport, StructureReport, add_engine_arguments
from vllm_mmc.compilation.counters import table

SWITCH_ON = "--compilation-config '{\"compile_mm_encoder\": true}'"


def add_parser(subparsers: Any) -> None:
    """Adds `doctor` to the commands of `vllm-mmc`."""
    parser = subparsers.add_parser(
        "doctor",
        help="start an engine and say whether its encoder is compiled",
        description=(
            "Start an engine with the arguments of your `vllm serve`, and say whether "
            "its encoder is compiled and kept. Exit status 0 if all of it is, else 1."
        ),
    )
    add_engine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from vllm_mmc.cli import engine

    found = engine.start(args.model, args.engine_args, compiled=False).reports
    for rank, report in enumerate(found):
        if len(found) > 1:
            print(f"\nrank {rank}")
        print("\n".join(diagnosis(report)))
    return int(any(not _healthy(report) for report in found))


def _healthy(report: EncoderReport) -> bool:
    eager = any(structure.eager_because for structure in report.structures)
    compiled = report.eager_because is None and bool(report.structures) and not eager
    return compiled and not report.unkept


def diagnosis(report: EncoderReport) -> list[str]:
    """Lines for the user."""
    if report.eager_because is not None:
        lines = [f"The encoder is not compiled: {report.eager_because}."]
        if "compile_mm_encoder" in report.eager_because:
            lines.append(f"Switch it on with {SWITCH_ON}.")
        return [report.model, *lines]
    if not report.structures:
        return [
            report.model,
            "Nothing is compiled before the first request: no profile run was done.",
        ]
    state = "is compiled" if _healthy(report) else "is compiled in part"
    rows = [
        f"  {structure.name}: {_state(structure)}" for structure in report.structures
    ]
    rows += [
        f"  {name}: eager, as the survey says: {why}"
        for name, why in report.never_compiled.items()
    ]
    if report.changes:
        rows += ["In the encoder:", *(f"  {change}" for change in report.changes)]
    rows += [
        f"  {name}: every start compiles it, it is not kept: {why}"
        for name, why in report.unkept.items()
    ]
    numbers = table(report.counters)
    return [report.model, f"The encoder {state}:", *rows, numbers]


def _state(structure: StructureReport) -> str:
    if structure.eager_because is not None:
        return f"eager: {structure.eager_because}"
    measured = structure.measured
    return "compiled" if measured is None else f"compiled: {measured}"
