# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Draws the results of one benchmark run, from its JSON file and nothing else."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# One colour per side; dashed or lighter is the variant of it.
STYLES = {
    "stock_cold": {"color": "#555555", "label": "stock, cold"},
    "stock_warm": {"color": "#555555", "label": "stock, warm", "linestyle": "--"},
    "ours_cold": {"color": "#0072b2", "label": "ours, cold"},
    "ours_warm": {"color": "#0072b2", "label": "ours, warm", "linestyle": "--"},
}
COLOURS = {
    "stock eager": "#999999",
    "stock default": "#c8c8c8",
    "stock compiled": "#555555",
    "ours": "#0072b2",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JSON file of a benchmark")
    parser.add_argument("picture", type=Path, help="to write, for instance OUT.svg")
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        print("plot: needs matplotlib (the extra [bench] has it)", file=sys.stderr)
        return 1
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "vllm_mmc", "font.size": 9}
    from matplotlib import pyplot as plt

    results = json.loads(args.results.read_text())
    draw = DRAWINGS.get(results.get("benchmark"))
    if draw is None:
        print(f"plot: {args.results} is of no known benchmark", file=sys.stderr)
        return 1
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    draw(axes, results)
    axes.spines[["top", "right"]].set_visible(False)
    # Above the drawing, where there is never a line or a bar.
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.text(0.995, 0.005, _origin(results), fontsize=6, ha="right", color="gray")
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    figure.savefig(args.picture, metadata={"Date": None})
    return 0


def _seconds_by_depth(axes: Any, results: dict[str, Any]) -> None:
    from matplotlib.ticker import LogFormatter

    rows = results["rows"]
    for case, style in STYLES.items():
        points = sorted(
            (row["depth"], row["beyond_seconds"]) for row in rows if row["case"] == case
        )
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", **style)
    depths = sorted({row["depth"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_xlabel("encoder blocks")
    if results["benchmark"] == "engine_start":
        axes.set_ylabel("seconds, compile_mm_encoder on - off")
        axes.figure.suptitle(
            f"{results['arch']}: what compiling adds to an engine start"
        )
    else:
        axes.set_ylabel("seconds beyond Inductor's first use")
        axes.figure.suptitle(f"{results['arch']}: compile to first output")


def _times_floor(axes: Any, results: dict[str, Any]) -> None:
    rows = [row for row in results["rows"] if row["provider"] in COLOURS]
    floors = {
        row["size"]: row["median_ms"]
        for row in results["rows"]
        if row["provider"] == "floor"
    }
    width = 0.8 / len(COLOURS)
    for i, (provider, colour) in enumerate(COLOURS.items()):
        for j, row in enumerate(r for r in rows if r["provider"] == provider):
            floor = floors[row["size"]]
            low, middle, high = (row[f"{key}_ms"] for key in ("p20", "median", "p80"))
            axes.bar(
                j + (i - (len(COLOURS) - 1) / 2) * width,
                middle / floor,
                0.9 * width,
                yerr=[[(middle - low) / floor], [(high - middle) / floor]],
                color=colour,
                ecolor="black",
                capsize=2,
                label=None if j else provider,
            )
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(
        range(len(floors)),
        [f"{size} {results['unit']}\n{ms:.0f} ms" for size, ms in floors.items()],
    )
    axes.set_ylabel("times the floor (p20 to p80)")
    protocol = results["protocol"]
    axes.figure.suptitle(
        f"{results['arch']}: one call, {protocol['depth']} blocks, {protocol['dtype']}"
    )


def _origin(results: dict[str, Any]) -> str:
    facts = results["environment"]
    sha = (facts["git_sha"] or "unknown")[:10] + ("+" if facts["git_dirty"] else "")
    return (
        f"{facts['cpu']}, {facts['threads']} threads; vLLM {facts['vllm']}, "
        f"torch {facts['torch']}; {sha}"
    )


DRAWINGS = {
    "compile_time": _seconds_by_depth,
    "engine_start": _seconds_by_depth,
    "encoder_forward": _times_floor,
}


if __name__ == "__main__":
    sys.exit(main())
