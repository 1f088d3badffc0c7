# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The `vllm-mmc` command."""

import argparse
import ast
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vllm_mmc import __version__
from vllm_mmc.catalog import CATALOG, EAGER, surveyed
from vllm_mmc.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 2 for a wrong use."""
    parser = argparse.ArgumentParser(
        prog="vllm-mmc", description="Compiled multimodal encoders for vLLM"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="print the architectures")
    command.set_defaults(run=run_list)

    from vllm_mmc.cli import bench, cache, demo, doctor, profile, prove
    from vllm_mmc.cli.engine import UsageError

    for module in (demo, prove, doctor, bench, profile, cache):
        module.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        status: int = args.run(args)
    except UsageError as error:
        print(f"vllm-mmc {args.command}: {error}", file=sys.stderr)
        return 2
    return status


def run_list(args: argparse.Namespace) -> int:
    _print_table(
        ("architecture", "regions", "stock vLLM compiles"),
        [(e.architecture, ", ".join(e.regions), e.stock) for e in CATALOG],
    )
    tables = _registry_tables()
    known = {name for table in tables.values() for name in table}
    others = surveyed(tables.get("_MULTIMODAL_MODELS", ()), known, "")
    how = "by survey"
    if not Settings.resolve().survey:
        how = "vLLM's own class (VLLM_MMC_SURVEY=0)"
    print()
    _print_table(
        ("architecture", "how"),
        [
            *((name, how) for name in others),
            *((name, f"eager: {reason}") for name, reason in EAGER.items()),
        ],
    )
    return 0


def _registry_tables() -> dict[str, list[str]]:
    """The names in each table of vLLM's registry, read without importing vLLM."""
    vllm = find_spec("vllm")
    if vllm is None or vllm.origin is None:
        return {}
    file = Path(vllm.origin).with_name("model_executor") / "models/registry.py"
    return {
        target.id: [str(key.value) for key in keys if isinstance(key, ast.Constant)]
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target, keys in [(node.targets[0], node.value.keys)]
        if isinstance(target, ast.Name)
    }


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        line = "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True))
        print(line.rstrip())
