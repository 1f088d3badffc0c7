# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc cache`: fill and check the compile cache, and carry it elsewhere."""

import argparse
import sys
from pathlib import Path
from typing import Any

from vllm_mmc.cli.engine import add_engine_arguments


def add_parser(subparsers: Any) -> None:
    """Adds `cache` to the commands of `vllm-mmc`."""
    help = "fill and check the compile cache, carry it to other machines"
    parser = subparsers.add_parser(
        "cache",
        help=help,
        description=f"{help[0].upper()}{help[1:]}. It lives in $VLLM_CACHE_ROOT.",
    )
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="ACTION")
    _add_warm(commands)
    _add_explain(commands)
    _add_export(commands)
    _add_import(commands)
    _add_verify(commands)


def _add_warm(commands: Any) -> None:
    parser = commands.add_parser(
        "warm",
        help="compile a model's encoder without serving it",
        description=(
            "Starts an engine with compile_mm_encoder on and the arguments of your "
            "`vllm serve`, and ends it when all is compiled and kept. Exit status 1 if "
            "something runs eager or is not kept."
        ),
    )
    add_engine_arguments(parser)
    parser.set_defaults(run=run_warm)


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="hit or miss for each structure of a model, and why",
        description=(
            "Starts an engine with the arguments of your `vllm serve`, compiles no "
            "encoder, and says for each graph whether the cache has it; if not, which "
            "factor of the key changed, from what to what. Exit status 1 for a miss."
        ),
    )
    add_engine_arguments(parser)
    parser.set_defaults(run=run_explain)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write the cache to one file",
        description="Writes all entries that are of use on this machine to one file.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the file")
    parser.add_argument(
        "--signing-key",
        type=Path,
        metavar="PEM",
        help="Ed25519 private key to sign it with",
    )
    parser.set_defaults(run=run_export)


def _add_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import",
        help="put an exported file into the cache",
        description=(
            "Puts all entries of an exported file into the cache, or none: whatever "
            "does not match its digests, its signature or this machine is refused. "
            "Exit status 1 if it is."
        ),
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the file")
    parser.add_argument(
        "--public-key",
        type=Path,
        metavar="PEM",
        help="Ed25519 public key that it must be signed with (default: any file)",
    )
    parser.set_defaults(run=run_import)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="compute every key and digest again",
        description=(
            "Computes every key and digest of the cache again. Exit status 1 if an "
            "entry is damaged; a stale one is only of no use here."
        ),
    )
    parser.set_defaults(run=run_verify)


def run_warm(args: argparse.Namespace) -> int:
    import vllm.envs as envs

    from vllm_mmc.cache.key import root
    from vllm_mmc.cli import engine

    if envs.VLLM_DISABLE_COMPILE_CACHE:
        return _fail("warm", "nothing is kept with VLLM_DISABLE_COMPILE_CACHE=1")
    found = engine.start(args.model, args.engine_args, compiled=True).reports
    problems = [r.eager_because for r in found if r.eager_because is not None]
    problems += [
        structure.eager_because
        for report in found
        for structure in report.structures
        # One that is faster eager is in the cache.
        if structure.eager_because not in (None, structure.measured)
    ]
    problems += [
        f"{name} is not kept: {why}"
        for report in found
        for name, why in report.unkept.items()
    ]
    for problem in problems:
        print(f"vllm-mmc cache warm: {problem}", file=sys.stderr)
    made, there, unkept = (
        sum(report.counters[name] for report in found)
        for name in ("graphs", "artifact_loads", "unkept")
    )
    lost = f" ({unkept} not kept)" if unkept else ""
    print(f"{root()}: {made} compiled{lost}, {there} already there")
    return int(bool(problems))


def run_explain(args: argparse.Namespace) -> int:
    from vllm_mmc.cli import engine

    found = engine.start(args.model, args.engine_args, compiled=True, explain=True)
    missed = found.missed
    problems = [r.eager_because for r in found.reports if r.eager_because]
    if not missed and not problems:
        problems = ["only engines of one process can be explained, without workers"]
    for problem in problems:
        print(f"vllm-mmc cache explain: {problem}", file=sys.stderr)
    for name, reasons in missed.items():
        print(f"{'hit ' if reasons is None else 'miss'}  {name}")
        for reason in reasons or ():
            print(f"        {reason}")
    return int(bool(problems) or any(r is not None for r in missed.values()))


def run_export(args: argparse.Namespace) -> int:
    from vllm_mmc.cache.bundles import BundleError, export_bundle

    try:
        done = export_bundle(args.bundle, signing_key=args.signing_key)
    except BundleError as error:
        return _fail("export", error)
    for name, reason in done.left_out.items():
        print(f"WARNING: left out {name}: {reason}", file=sys.stderr)
    megabytes = args.bundle.stat().st_size / 1e6
    signed = "signed" if done.signed else "not signed"
    print(f"{args.bundle}: {_count(done.entries)}, {megabytes:.1f} MB, {signed}")
    return 0


def run_import(args: argparse.Namespace) -> int:
    from vllm_mmc.cache.bundles import BundleError, import_bundle
    from vllm_mmc.cache.key import root

    try:
        done = import_bundle(args.bundle, public_key=args.public_key)
    except BundleError as error:
        return _fail("import", error)
    if done.signed and args.public_key is None:
        print("WARNING: signature not checked, no --public-key given", file=sys.stderr)
    there = f", {len(done.left_out)} already there" if done.left_out else ""
    print(f"{root()}: {_count(done.entries)} put in{there}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from vllm_mmc.cache.bundles import verify
    from vllm_mmc.cache.key import root

    try:
        findings = verify()
    except OSError as error:
        return _fail("verify", error)
    for finding in findings:
        print(f"{finding.state:8}  {finding.name}  {finding.reason}".rstrip())
    print(f"{root()}: {_count([f for f in findings if f.state != 'leftover'])}")
    return int(any(finding.state == "damaged" for finding in findings))


def _count(entries: Any) -> str:
    return f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}"


def _fail(command: str, error: Exception | str) -> int:
    print(f"vllm-mmc cache {command}: {error}", file=sys.stderr)
    return 1
