# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Proves each finding on the vLLM that Python finds first: `make upstream`.

    python upstream/check.py [FINDING ...]
    python upstream/check.py --record     # and write states.json and README.md
    python upstream/check.py --readme     # README.md from states.json, no run

For each folder here, on a copy of vLLM: `repro.py` and `test.py` fail, the patch
applies, `repro.py` and `test.py` pass. CONTRIBUTING.md has the rules of a folder.
The copy is made of hard links. What a patch changes becomes a file of its own first,
and the digests of the installed files are compared at the end.

Each script runs in a process of its own that was forked from this one. Python and the
packages that vLLM imports are loaded once, here; vLLM is not: each process imports it
from its copy.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATES = HERE / "states.json"
OPERATORS = {"0.33.0": "0.32.0"}
"""Release without a wheel for CPU -> the release whose operators its Python runs on."""
LIMIT = 900
"""Seconds for one script, which needs five on an idle machine."""
PRELOADED = (
    "torch._dynamo.aot_compile",
    "torch._inductor.compile_fx",
    "transformers.modeling_utils",
    "transformers.processing_utils",
    *("fastapi", "openai.types.responses", "pytest", "scipy.signal", "uvloop"),
)
"""What vLLM imports of others: most of the time of an import."""
FORK = multiprocessing.get_context("fork")

WRONG, RIGHT, TEXT = "wrong", "right", "text"
MEANING = {
    WRONG: "`repro.py` fails. With the patch, it and `test.py` pass",
    RIGHT: "`repro.py` passes without a patch: there is nothing left to send",
    TEXT: "a question or a proposal, without `repro.py`",
}

README = """\
<!-- Made by upstream/check.py; edit that, or a pr.md. -->

# Findings for vLLM

Each folder has one fault of vLLM's: `repro.py` shows it, `change.patch` mends it,
`test.py` is for vLLM's tests, `pr.md` is for the pull request. `make upstream` proves
all of them on a copy of the installed vLLM. A person submits them, a bundle at a time:
[CONTRIBUTING.md](../CONTRIBUTING.md) says how. What this package has mended, and where
each goes, is in [ours.md](ours.md). `models/` has our encoders as patches of vLLM's own
files, made by `tools/make_patches.py`.

| finding | {releases} | related |
|---|{dashes}|
{rows}

{meaning}

{operators}
"""


@dataclass(frozen=True)
class Finding:
    """One folder. `needs`: the finding without which this one must not be sent."""

    name: str
    title: str
    bundle: str
    needs: str
    related: tuple[str, ...]
    """Issues and pull requests, `owner/repository#number`."""

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def patch(self) -> Path | None:
        path = self.folder / "change.patch"
        return path if path.exists() else None


@dataclass(frozen=True)
class Result:
    finding: str
    state: str
    detail: str
    surprise: bool = False


def findings() -> dict[str, Finding]:
    """By name. A pr.md has `key: value` lines between two `---`, then a title."""
    found = {}
    for page in sorted(HERE.glob("*/pr.md")):
        name = page.parent.name
        _, head, body = page.read_text().split("---\n", 2)
        keys = dict(line.split(": ", 1) for line in head.splitlines())
        if not keys.keys() <= {"bundle", "needs"} or "bundle" not in keys:
            raise ValueError(f"{name}/pr.md: has the keys {sorted(keys)}")
        title = body.strip().splitlines()[0].removeprefix("# ")
        numbers = re.findall(r"([\w.-]+/[\w.-]+)?#(\d+)\b", body)
        related = {f"{repo or 'vllm-project/vllm'}#{n}": None for repo, n in numbers}
        found[name] = Finding(
            name, title, keys["bundle"], keys.get("needs", ""), tuple(related)
        )
    return found


# ---------------------------------------------------------------- the page


def recorded() -> dict[str, dict[str, str]]:
    """Release -> finding -> its state, as the last `--record` has found it."""
    return json.loads(STATES.read_text()) if STATES.exists() else {}


def readme() -> str:
    """README.md, from each pr.md and states.json."""
    states = recorded()
    bundles: dict[str, list[Finding]] = {}
    for finding in findings().values():
        bundles.setdefault(finding.bundle, []).append(finding)
    rows = []
    for bundle, members in bundles.items():
        rows.append(f"| **{bundle}** |{' |' * (len(states) + 1)}")
        for one in members:
            told = [of.get(one.name, "not run") for of in states.values()]
            if one.patch is None:
                told = [f"{t}, no patch" if t == WRONG else t for t in told]
            title = f"[{one.title}]({one.name}/pr.md)"
            if one.needs:
                title += f", never without [{one.needs}]({one.needs}/pr.md)"
            rows.append(f"| {' | '.join((title, *told, _links(one.related)))} |")
    return README.format(
        releases=" | ".join(states),
        dashes="---|" * len(states) + "---",
        rows="\n".join(rows),
        meaning="\n".join(f"- **{word}**: {text}." for word, text in MEANING.items()),
        operators="\n".join(
            f"vLLM {release} has no wheel for CPU: its Python ran on the operators of "
            f"{other}."
            for release, other in OPERATORS.items()
            if release in states
        ),
    )


def _links(related: tuple[str, ...]) -> str:
    return ", ".join(
        f"[{re.sub('^vllm-project/vllm#', '#', one)}]"
        f"(https://github.com/{one.replace('#', '/issues/')})"
        for one in related
    )


# ---------------------------------------------------------------- copies and patches


def installed() -> Path:
    """The directory of the vLLM that Python finds first."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        sys.exit("vLLM is not installed")
    return Path(spec.origin).parent


def release_of(package: Path) -> str:
    match = re.search(
        r"version = '(\d+\.\d+\.\d+)", (package / "_version.py").read_text()
    )
    assert match, "vllm/_version.py has another form"
    return match[1]


@contextlib.contextmanager
def copied(package: Path) -> Iterator[Path]:
    """A directory for `sys.path` with a copy of `package`, made of hard links."""
    same = os.stat(tempfile.gettempdir()).st_dev == package.stat().st_dev
    beside = None if same else package.parent.parent
    with tempfile.TemporaryDirectory(prefix="upstream-", dir=beside) as directory:
        shutil.copytree(package, Path(directory, "vllm"), copy_function=os.link)
        yield Path(directory)


def touched(patch: Path) -> list[str]:
    """The files that a patch changes, `vllm/...`."""
    return re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), flags=re.MULTILINE)


def apply(patch: Path, copy: Path) -> str | None:
    """None if `patch` applies to the letter, else what was said."""
    for name in touched(patch):
        path = copy / name
        if path.exists():  # no longer a link: the installed file must stay
            text = path.read_bytes()
            path.unlink()
            path.write_bytes(text)
    done = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "--batch", "-i", patch],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    return None if done.returncode == 0 else done.stdout.strip() or done.stderr


# ---------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    status: int | None
    """None: it ran past the limit."""
    output: str

    @property
    def passed(self) -> bool:
        return self.status == 0

    @property
    def last(self) -> str:
        return next(iter(self.output.strip().splitlines()[-1:]), "")


def run(script: Path, copy: Path) -> Run:
    """Run `script`, by pytest if it is a test.py, with the vLLM in `copy`."""
    with tempfile.TemporaryDirectory(dir=copy) as scratch:
        said = Path(scratch, "output")
        process = FORK.Process(target=_child, args=(script, copy, Path(scratch), said))
        process.start()
        process.join(LIMIT)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        return Run(None if late else process.exitcode, said.read_text(errors="replace"))


def _child(script: Path, copy: Path, scratch: Path, said: Path) -> None:
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    os.chdir(scratch)
    sys.path.insert(0, str(copy))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{copy}{os.pathsep}{path}" if path else str(copy)
    os.environ["VLLM_CACHE_ROOT"] = str(scratch / "cache")
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    if script.name == "test.py":
        import pytest

        options = ["-q", "-c", os.devnull, "--rootdir", str(script.parent)]
        options += ["--import-mode=importlib", "-p", "no:cacheprovider"]
        sys.exit(int(pytest.main([*options, str(script)])))
    sys.argv = [str(script)]
    runpy.run_path(str(script), run_name="__main__")


def check(finding: Finding, package: Path) -> Result:
    """All runs of one finding. `needs` adds those of the pair."""

    def result(state: str, detail: str) -> Result:
        return Result(finding.name, state, detail)

    def surprise(what: str, output: str) -> Result:
        return Result(finding.name, "?", f"{what}:\n{output}", surprise=True)

    with copied(package) as copy:
        repro, test = finding.folder / "repro.py", finding.folder / "test.py"
        if not repro.exists():
            return result(TEXT, "nothing to run")
        before = run(repro, copy)
        if before.passed:
            return result(RIGHT, f"without a patch: {before.last}")
        if before.status is None or "Traceback (most recent" in before.output:
            return surprise("repro.py does not work", before.output)
        if finding.patch is None:
            return result(WRONG, f"no patch: {before.last}")
        tested = run(test, copy)
        if tested.status != 1:
            return surprise("test.py does not fail without the patch", tested.output)
        if (said := apply(finding.patch, copy)) is not None:
            return surprise("change.patch does not apply", said)
        for script in (repro, test):
            after = run(script, copy)
            if not after.passed:
                return surprise(f"{script.name} fails with the patch", after.output)
        if finding.needs and (said := check_pair(finding, package, copy)) is not None:
            return surprise("pair.py", said)
        return result(WRONG, f"the patch mends it: {before.last}")


def check_pair(finding: Finding, package: Path, patched: Path) -> str | None:
    """None if `pair.py` passes without the patch, fails with it, passes with both."""
    pair = finding.folder / "pair.py"
    needed = findings()[finding.needs]
    assert needed.patch
    with copied(package) as copy:
        without = run(pair, copy)
    alone = run(pair, patched)
    if said := apply(needed.patch, patched):
        return f"change.patch of {needed.name} does not apply:\n{said}"
    both = run(pair, patched)
    if without.passed and alone.status == 1 and both.passed:
        return None
    statuses = f"without {without.status}, alone {alone.status}, both {both.status}"
    return "\n".join((statuses, *(one.output for one in (without, alone, both))))


def check_together(series: list[Finding], package: Path) -> list[Result]:
    """All patches, one after another, on one copy."""
    with copied(package) as copy:
        return [
            Result(one.name, "?", f"after the others it does not apply:\n{said}", True)
            for one in series
            if one.patch and (said := apply(one.patch, copy))
        ]


def digests(package: Path, series: list[Finding]) -> dict[str, str]:
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for one in series
        if one.patch
        for name in touched(one.patch)
        if (path := package.parent / name).exists()
    }


def preload() -> None:
    """The environment of all runs, and the packages that they share."""
    os.environ |= {
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert "vllm" not in sys.modules


def told(one: Result, release: str, states: dict[str, dict[str, str]]) -> Result:
    """Print it, and that it is fixed upstream if an older release is wrong."""
    print(f"{one.finding:32} {one.state:6} {one.detail}", flush=True)
    older = [of.get(one.finding) for name, of in states.items() if name < release]
    if one.state == RIGHT and WRONG in older:
        print(f"{'':32} fixed upstream in this release; so hooks of ours may go:")
        print(f"{'':32} grep -r upstream/{one.finding} vllm_mmc/compat")
    return one


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="FINDING", help="default: all")
    parser.add_argument("--record", action="store_true", help="write what was found")
    parser.add_argument("--readme", action="store_true", help="write the page, no more")
    options = parser.parse_args()
    if options.readme:
        (HERE / "README.md").write_text(readme())
        return 0
    everything = findings()
    series = [everything[name] for name in options.names or everything]
    package = installed()
    release = release_of(package)
    print(f"vLLM {release} in {package.parent}", flush=True)

    states = recorded()
    known = states.get(release, {})
    preload()
    before = digests(package, series)
    jobs = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(jobs, mp_context=FORK) as pool:
        runs = pool.map(check, series, [package] * len(series))
        results = [told(one, release, states) for one in runs]
    results += [told(one, release, states) for one in check_together(series, package)]
    if digests(package, series) != before:
        results.append(Result("", "?", "the installed files have changed", True))
        told(results[-1], release, states)
    changed = [
        one.finding
        for one in results
        if one.finding in known and known[one.finding] != one.state
    ]
    if options.record and not any(one.surprise for one in results):
        states = recorded()  # another release may have been recorded meanwhile
        known = {**known, **{one.finding: one.state for one in results}}
        states[release] = {n: known[n] for n in sorted(known) if n in everything}
        states = {r: states[r] for r in sorted(states)}
        STATES.write_text(json.dumps(states, indent=2) + "\n")
        (HERE / "README.md").write_text(readme())
    elif changed:
        print(f"not as in states.json: {', '.join(changed)}")
    surprises = [one for one in results if one.surprise]
    return int(bool(surprises or (changed and not options.record)))


if __name__ == "__main__":
    sys.exit(main())
