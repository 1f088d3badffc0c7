# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Wheels for a machine without internet, in parts that are small enough to carry.

    offline_kit.py list --have freeze.txt 'vllm==0.26.0'
    offline_kit.py make --have freeze.txt --into kit 'vllm==0.26.0'
    python kit/offline_kit.py join kit wheels        # there; then
    pip install --no-index --find-links wheels 'vllm==0.26.0'

`freeze.txt` is what `pip freeze` prints there. What is there stays as it is, unless
`--upgrade` names it.

Run it on Linux with the version of Python and the kind of processor that are there: pip
answers the markers of a requirement, for instance `python_version > "3.11"`, for the
Python that it runs in. It needs pip here, and nothing but Python there.
"""

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MIB = 1 << 20
PART = 60 * MIB
MANIFEST = "kit.json"
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)
"""Minor versions of glibc 2 that wheels are built for."""


class KitError(Exception):
    """What is wrong, in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "make"):
        command = commands.add_parser(name)
        command.add_argument("requirements", nargs="+")
        command.add_argument("--have", type=Path, required=True, metavar="FREEZE")
        command.add_argument("--upgrade", action="append", default=[], metavar="NAME")
        command.add_argument("--glibc", type=int, default=35, help="minor; default: 35")
    command.add_argument("--into", type=Path, required=True, metavar="KIT")
    join_command = commands.add_parser("join")
    join_command.add_argument("kit", type=Path)
    join_command.add_argument("wheels", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "join":
            join(args.kit, args.wheels)
            return 0
        have = read_freeze(args.have.read_text())
        for name in args.upgrade:
            have.pop(canonical(name), None)
        target = target_options(args.glibc)
        wheels = missing(resolve(args.requirements, have, target), have)
        for name, version in wheels.items():
            print(f"{name}=={version}")
        if args.command == "make":
            make(wheels, target, args.into)
    except (KitError, OSError) as error:
        print(f"offline_kit: {error}", file=sys.stderr)
        return 1
    return 0


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_freeze(text: str) -> dict[str, str]:
    """Returns name -> version of the lines "name==version"; others say no version."""
    lines = (line.strip().partition("==") for line in text.splitlines())
    return {canonical(name): version for name, equals, version in lines if equals}


def target_options(glibc: int) -> list[str]:
    """Returns pip's options for wheels of this Python and processor, with Linux."""
    machine = platform.machine()
    platforms = [f"manylinux_2_{n}_{machine}" for n in GLIBC if n <= glibc]
    platforms += [f"manylinux{n}_{machine}" for n in ("1", "2010", "2014")]
    return ["--only-binary=:all:", *(f"--platform={p}" for p in reversed(platforms))]


def resolve(
    requirements: Sequence[str], have: Mapping[str, str], target: Sequence[str]
) -> dict[str, str]:
    """Returns name -> version of all that the requirements need there.

    For pip, empty wheels stand for what is there: an index need not have them, and what
    they need is there as well.

    Raises:
        KitError: if nothing fits what is there.
    """
    with tempfile.TemporaryDirectory() as name:
        there, constraints, report = (
            Path(name, n) for n in ("there", "pins", "report")
        )
        there.mkdir()
        for package, version in have.items():
            stand_in(package, version, there)
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in have.items()))
        _pip(
            *("install", "--dry-run", "--ignore-installed", f"--target={name}/none"),
            *(f"--report={report}", f"--constraint={constraints}"),
            f"--find-links={there}",
            *target,
            *requirements,
        )
        found = json.loads(report.read_text())["install"]
    packages = (package["metadata"] for package in found)
    return {canonical(p["name"]): p["version"] for p in packages}


def stand_in(name: str, version: str, directory: Path) -> None:
    """Write an empty wheel of that name and version, which needs nothing."""
    stem = f"{name.replace('-', '_')}-{version}"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    facts = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(directory / f"{stem}-py3-none-any.whl", "w") as wheel:
        for file, text in {"METADATA": facts, "WHEEL": tags, "RECORD": ""}.items():
            wheel.writestr(f"{stem}.dist-info/{file}", text)


def missing(needed: Mapping[str, str], have: Mapping[str, str]) -> dict[str, str]:
    """Returns what of it is not there, by name."""
    return {
        name: version
        for name, version in sorted(needed.items())
        if have.get(name) != version
    }


def make(wheels: Mapping[str, str], target: Sequence[str], kit: Path) -> None:
    """Download wheels, and cut what is larger than a part.

    Raises:
        KitError: if the directory is there, or a download fails.
    """
    if kit.exists():
        raise KitError(f"{kit} is there already")
    with tempfile.TemporaryDirectory() as name:
        pinned = [f"{n}=={version}" for n, version in wheels.items()]
        if pinned:
            _pip("download", "--no-deps", f"--dest={name}", *target, *pinned)
        split(sorted(Path(name).glob("*.whl")), kit)
    shutil.copy(__file__, kit / Path(__file__).name)


def split(wheels: Sequence[Path], kit: Path, part: int = PART) -> None:
    """Write each wheel in parts of at most `part` bytes, and the manifest."""
    kit.mkdir(parents=True)
    manifest = {}
    for wheel in wheels:
        digest = hashlib.sha256()
        names: list[str] = []
        with wheel.open("rb") as source:
            while chunk := source.read(part):
                digest.update(chunk)
                names.append(f"{wheel.name}.{len(names) + 1:03}")
                (kit / names[-1]).write_bytes(chunk)
        manifest[wheel.name] = {"sha256": digest.hexdigest(), "parts": names}
    (kit / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def join(kit: Path, wheels: Path) -> None:
    """Put the wheels together again.

    Raises:
        KitError: if a part is missing, or a wheel is not what it was.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    for name, wheel in json.loads((kit / MANIFEST).read_text()).items():
        digest = hashlib.sha256()
        if lost := [part for part in wheel["parts"] if not (kit / part).exists()]:
            raise KitError(f"{name}: missing {', '.join(lost)}")
        unchecked = wheels / f"{name}.unchecked"
        with unchecked.open("wb") as target:
            for part in wheel["parts"]:
                chunk = (kit / part).read_bytes()
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != wheel["sha256"]:
            unchecked.unlink()
            raise KitError(f"{name}: a part is damaged")
        unchecked.replace(wheels / name)


def _pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", *args]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise KitError((errors or done.stderr.splitlines() or ["pip failed"])[-1])


if __name__ == "__main__":
    sys.exit(main())
