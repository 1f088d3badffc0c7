# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Milliseconds of one encoder call: stock eager, stock compiled, ours, and the floor.

All towers live in one process with the same weights and take turns. Nothing is reported
unless they agree. See benchmarks/README.md.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness

from vllm_mmc.prove.cases import CASES, Case
from vllm_mmc.prove.floor import floor_of
from vllm_mmc.prove.providers import (
    COMPILED,
    EAGER,
    FLOOR,
    Provider,
    check,
    native,
    provider,
    providers,
)

DTYPES = ("bfloat16", "float32", "float16")
WARM_UP_ROUNDS = 1  # beside the call that was checked
FEWEST_ROUNDS = 5
COLUMNS = {
    "provider": "provider",
    "size": "size",
    "median": "median_ms",
    "p20": "p20_ms",
    "p80": "p80_ms",
    "x stock eager": "speedup_to_stock_eager",
    "x stock compiled": "speedup_to_stock_compiled",
    "/ floor": "times_floor",
    "rounds": "rounds",
    "graphs": "graphs",
    "RMS": "rms_to_truth",
    "allowed": "rms_allowed",
}


def main() -> int:
    parser = harness.parser("encoder_forward", __doc__)
    parser.add_argument("--depth", type=int, help="blocks (default: that of the case)")
    parser.add_argument(
        "--patches",
        "--sizes",
        dest="sizes",
        type=harness.numbers,
        help="input sizes (default: those of the case)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument(
        "--rounds", type=int, default=15, help="per size (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="after which a size gets no more rounds, once it has had"
        f" {FEWEST_ROUNDS} (default: %(default)s)",
    )
    args = parser.parse_args()
    case = CASES[args.arch]
    args.depth = args.depth or case.forward_depth
    args.sizes = args.sizes or list(case.forward_sizes)
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-bench-") as name:
        # Before vLLM is imported: caches that nobody used before, and no plugin.
        caches = harness.cache_environment(Path(name), Path(name) / "model-notes")
        os.environ.update(caches)
        # Stock cannot load its own artifacts on CPU and warns at every block.
        os.environ.update(VLLM_PLUGINS="", VLLM_LOGGING_LEVEL="ERROR")
        return _run(case, args, Path(name))


def _run(case: Case, args: argparse.Namespace, directory: Path) -> int:
    from mmc_testing.engine import tower_context
    from vllm_mmc.prove import towers

    environment = harness.environment()
    checkpoint = case.checkpoint(
        directory / "checkpoint", depth=args.depth, dtype=args.dtype, blocks="real"
    )
    rows, red = [], []
    # One context, for the process groups of all towers; its config is the truth's.
    with tower_context(checkpoint, dtype="float32", **case.engine_args) as config:
        truth = provider(case, "truth", case.stock, config, args.dtype)
        truths = {
            size: truth(towers.inputs(case, truth.tower, size)) for size in args.sizes
        }
        # Now: vLLM's destructor of a packed weight fails if it runs while tracing.
        del truth
        gc.collect()
        sides = providers(case, checkpoint, args.dtype)
        floor = native(case, checkpoint, args.dtype)
        for size in args.sizes:
            item = towers.inputs(case, sides[0].tower, size)  # of another dtype
            checked = check(sides, truths[size], item, size)
            red += [row for row in checked if not row["equal"]]
            if not red:
                rows += _time(sides, floor, item, args, checked)
                print(f"{size} {case.unit}: done", file=sys.stderr)
    if red:
        for row in red:
            print(
                f"encoder_forward: {row['provider']} is wrong at {row['size']} "
                f"{case.unit}: RMS error ratio {row['rms_to_truth']:.3g}, allowed "
                f"{row['rms_allowed']:.3g}. No time is reported.",
                file=sys.stderr,
            )
        return 1
    _print(args, rows)
    harness.write_json(
        args.json or harness.default_output("encoder_forward", args.arch),
        {
            "benchmark": "encoder_forward",
            "arch": args.arch,
            "unit": case.unit,
            "environment": environment | {"load_average_after": os.getloadavg()[0]},
            "protocol": {
                "depth": args.depth,
                "dtype": args.dtype,
            },
            "rows": rows,
        },
    )
    return 0


# ---------------------------------------------------------------- time


def _time(
    sides: list[Provider],
    unit: Provider,
    inputs: tuple[Any, ...],
    args: argparse.Namespace,
    checked: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Lets the providers and the floor's shapes take turns; returns a row for each.

    Args:
        unit: whose products are the floor's.
    """
    from vllm_mmc.prove import towers

    size = checked[0]["size"]
    native_inputs = towers.inputs(unit.case, unit.tower, size)
    floor = floor_of(unit.tower, lambda: unit(native_inputs))

    def all_of(calls: list[Callable[[], Any]]) -> None:
        for call in calls:
            call()

    times: dict[Any, list[float]] = defaultdict(list)
    turns: list[tuple[Any, Provider, Callable[[], Any]]] = [
        *((p.name, p, partial(p.case.call, p.tower, *inputs)) for p in sides),
        *((s, unit, partial(all_of, c)) for s, c in floor.products.items()),
    ]
    gc.collect()
    gc.disable()
    deadline = time.monotonic() + 60 * args.minutes
    for i in range(WARM_UP_ROUNDS + args.rounds):
        if i >= WARM_UP_ROUNDS + FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        # Each round begins with another one: nobody always comes after the same.
        first = i % len(turns)
        for name, side, call in (*turns[first:], *turns[:first]):
            with side.active():
                taken, _ = towers.seconds(call)
            if i >= WARM_UP_ROUNDS:
                times[name].append(taken)
    gc.enable()
    rounds = len(times[EAGER])

    found = {row["provider"]: row for row in checked}
    spreads = {name: harness.spread(values) for name, values in times.items()}
    floor_ms = 1000 * floor.seconds({s: spreads[s]["median"] for s in floor.products})
    rows = []
    for side in sides:
        ms = {key: 1000 * value for key, value in spreads[side.name].items()}
        rows.append(
            found[side.name]
            | {f"{key}_ms": value for key, value in ms.items()}
            | {
                "rounds": rounds,
                "speedup_to_stock_eager": _ratio(spreads, EAGER, side.name),
                "speedup_to_stock_compiled": _ratio(spreads, COMPILED, side.name),
                "times_floor": ms["median"] / floor_ms,
            }
        )
    products = sum(spreads[shape]["median"] for shape in floor.products)
    rows.append(
        {
            "provider": FLOOR,
            "size": size,
            "median_ms": floor_ms,
            "products_ms": 1000 * products,
            "attention_ms": floor_ms - 1000 * products,
            "product_gflops": floor.product_flops / 1e9,
            "attention_gflops": floor.attention_flops / 1e9,
            "gflops_per_second": floor.product_flops / products / 1e9,
            "rounds": rounds,
            "shapes": [
                {
                    "rows_in_out_bias": list(shape),
                    "occurrences": len(calls),
                    "all_ms": 1000 * spreads[shape]["median"],
                }
                for shape, calls in floor.products.items()
            ],
        }
    )
    return rows


def _ratio(spreads: dict[Any, dict[str, float]], of: str, to: str) -> float | None:
    if of not in spreads:
        return None
    return spreads[of]["median"] / spreads[to]["median"]


def _print(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{args.arch}, {args.depth} blocks, {args.dtype}, one call, milliseconds;"
        " RMS: error ratio to the float32 encoder\n"
    )
    harness.print_table(
        COLUMNS, [[row.get(k) for k in COLUMNS.values()] for row in rows]
    )


if __name__ == "__main__":
    sys.exit(main())
