# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc profile`: from the sizes in a server's log to ranges and sizes."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_mmc.sizes.histogram import Histogram, Items, Readings, read

# Up to so many sizes have a bar of their own.
MAX_BARS = 16
# Sizes this many times apart are binned by powers of two, others in equal steps.
WIDE = 8
BAR_WIDTH = 40


def add_parser(subparsers: Any) -> None:
    """Adds `profile` to the commands of `vllm-mmc`."""
    parser = subparsers.add_parser(
        "profile",
        help="propose compile ranges and sizes from a server's log",
        description=(
            "Reads the sizes that encoders were called with out of the log of a server "
            "that ran with VLLM_MMC_LOG_SHAPES_INTERVAL=SECONDS, prints how they are "
            "distributed, and proposes what to compile for. Sizes are packed tokens: "
            "rows of the encoder's input, all items of a call laid end to end."
        ),
    )
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the counts")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT", help="draw the histogram (.svg, .png)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints histogram and proposal.

    Returns:
        0, or 1 with one line on stderr that says what is wrong.
    """
    try:
        readings = read(_lines(args.logs))
        if not readings.histogram.total:
            raise ValueError(
                "no encoder sizes in the log: run the server with "
                "VLLM_MMC_LOG_SHAPES_INTERVAL=SECONDS (for example 60)"
            )
        _report(readings)
        if args.json:
            args.json.write_text(json.dumps(_raw(readings), indent=2) + "\n")
        if args.plot:
            _plot(readings.histogram, args.plot)
    except (OSError, ValueError) as error:
        print(f"vllm-mmc profile: {error}", file=sys.stderr)
        return 1
    return 0


def proposal(histogram: Histogram) -> dict[str, Any]:
    """The value for vLLM's `--additional-config`."""
    return {
        "vllm_mmc": {
            "compile_ranges": histogram.compile_ranges(),
            "compile_sizes": histogram.compile_sizes(),
        }
    }


def bars(items: Items) -> list[tuple[int, int, int]]:
    """(first, last, calls) of every bar that has calls, both ends included."""
    smallest, largest = items[0][0], items[-1][0]
    if len(items) <= MAX_BARS:
        return [(size, size, calls) for size, calls in items]
    if largest >= WIDE * smallest:
        edges = [1 << k for k in range(largest.bit_length() + 1)]
    else:
        step = -(-(largest - smallest + 1) // MAX_BARS)
        edges = list(range(smallest, largest + step + 1, step))
    binned = [
        (first, end - 1, sum(calls for size, calls in items if first <= size < end))
        for first, end in zip(edges, edges[1:])
    ]
    return [bar for bar in binned if bar[2]]


def _lines(logs: Sequence[Path]) -> Iterator[str]:
    for log in logs:
        with log.open(encoding="utf-8", errors="replace") as file:
            yield from file


def _report(readings: Readings) -> None:
    histogram = readings.histogram
    print(f"{histogram.total} encoder calls of {readings.processes} processes\n")
    for row in _rows(bars(histogram.items()), histogram.total):
        print(row)
    value = shlex.quote(json.dumps(proposal(histogram)))
    print(f"\n--additional-config {value}")
    if readings.unreadable:
        print(
            f"vllm-mmc profile: {readings.unreadable} damaged lines left out",
            file=sys.stderr,
        )


def _rows(found: Iterable[tuple[int, int, int]], total: int) -> list[str]:
    names, shares = [], []
    for first, last, calls in found:
        names.append(str(first) if first == last else f"{first}-{last}")
        shares.append(calls / total)
    width = max(map(len, ["tokens", *names]))
    rows = [f"{'tokens':>{width}}   share"]
    for name, share in zip(names, shares, strict=True):
        bar = "#" * round(BAR_WIDTH * share / max(shares))
        rows.append(f"{name:>{width}}  {share:5.1%}  {bar}".rstrip())
    return rows


def _raw(readings: Readings) -> dict[str, Any]:
    return {
        "processes": readings.processes,
        **readings.histogram.to_json(),
        "proposal": proposal(readings.histogram),
    }


def _plot(histogram: Histogram, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "--plot needs matplotlib: it comes with vllm-mmc[bench]"
        ) from error
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"--plot: not .svg or .png: {path}")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    found = bars(histogram.items())
    axes.bar(
        [
            f"{first}" if first == last else f"{first}-{last}"
            for first, last, _ in found
        ],
        [100 * calls / histogram.total for _, _, calls in found],
        color="#4477aa",
    )
    axes.set_xlabel("packed tokens of one encoder call")
    axes.set_ylabel("% of the calls")
    axes.tick_params(axis="x", rotation=45)
    figure.savefig(path)
