# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What all tests share: a cache of their own, a tiny checkpoint, no network."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmc_testing.release import RELEASE
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compat import garbage

PAGES_OF = "0.32"
"""The release of vLLM that the pages and the census are made from."""
_MODEL = "it has no such model"
_FAKE = "the fake of its torch_sdpa_wrapper asks for cu_seqlens: the block runs eager"
NOT_IN = {
    "0.31": {
        "clef_omni": _MODEL,
        "ClefOmni": _MODEL,
        "EmbeddingGemma2": _MODEL,
        "equals_eager[ovis_aimv2-": _MODEL,
        "equals_eager[whisper-": _FAKE,
        "equals_eager[kimi_audio-": _FAKE,
        "equals_eager[moss_transcribe_diarize-": _FAKE,
        "equals_eager[voxtral-": _FAKE,
        "equals_eager[phi4mm_audio-": "its block keeps attention weights: eager",
    }
}
"""Release -> part of the name of a test -> why the release does not pass it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record",
        type=Path,
        help="note what passed here, for docs/supported-models.md",
    )

    parser.addoption(
        "--record-versions",
        type=Path,
        help="note what passed with this vLLM, for docs/supported-versions.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """vLLM's caches for the whole session; tests of a cold start take another."""
    if path := config.getoption("--record"):
        config.pluginmanager.register(Record(path))
    if path := config.getoption("--record-versions"):
        config.pluginmanager.register(VersionRecord(path))
    # Child processes import from this checkout too, wherever it is installed from.
    root, path = str(config.rootpath), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root
    cache = tempfile.mkdtemp(prefix="vllm_mmc-tests-")
    os.environ["VLLM_CACHE_ROOT"] = cache
    os.environ["HF_HUB_OFFLINE"] = "1"
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forked tests first: a process that has used OpenMP hangs once it is forked."""
    items.sort(key=lambda item: item.get_closest_marker("forked") is None)
    for item in items:
        if RELEASE != PAGES_OF and item.get_closest_marker("pages"):
            reason = f"the pages are made from vLLM {PAGES_OF}"
            item.add_marker(pytest.mark.skip(reason=reason))
        for name, reason in NOT_IN.get(RELEASE, {}).items():
            if name in item.name:
                item.add_marker(pytest.mark.skip(reason=f"vLLM {RELEASE}: {reason}"))


class Record:
    """Counts the tests of each family that passed, by what they show."""

    KINDS: ClassVar = {
        "tests/models/test_sharding.py": "two ranks",
        "tests/models/": "equality",
        "tests/compile/test_fullgraph.py": "full graph",
        "tests/compile/test_multimodal_compile.py": "engine",
        "tests/e2e/test_demo_command.py": "engine",
        "tests/e2e/test_speech.py": "server",
        "tests/e2e/test_serve.py": "server",
    }

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passed: dict[tuple[str, str], int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        kind = next(
            (k for file, k in self.KINDS.items() if test.startswith(file)), None
        )
        for family in {entry.family for entry in CATALOG}:
            named = re.search(rf"(?<![a-z0-9]){family}(?![a-z0-9_])", test)
            if kind and named and (report.when == "call" or report.failed):
                before = self.passed.get((family, kind), 0)
                # Of a kind of which one has failed, none counts.
                failed = report.failed or before < 0
                self.passed[family, kind] = -1 if failed else before + report.passed

    def pytest_sessionfinish(self) -> None:
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        for (family, kind), passed in self.passed.items():
            known.setdefault(family, {})[kind] = max(passed, 0)
        text = json.dumps(known, indent=2, sort_keys=True)
        self.path.write_text(text + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class VersionRecord:
    """Counts the tests of each file by their outcome, for this release of vLLM."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.files[report.nodeid.partition("::")[0]][report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        of_release = known.setdefault(importlib.metadata.version("vllm"), {})
        here = {
            "date": time.strftime("%Y-%m-%d"),
            "processor": _processor(),
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
        }
        for file, outcomes in self.files.items():
            of_release[file] = {**outcomes, **here}
        text = json.dumps(known, indent=2, sort_keys=True)
        self.path.write_text(text + "\n")


@pytest.fixture(autouse=True)
def garbage_between_tests() -> Iterator[None]:
    """Layers of an earlier test are not collected while vLLM traces for this one."""
    with garbage.kept():
        yield


@pytest.fixture(scope="session")
def cache_root() -> Path:
    return Path(os.environ["VLLM_CACHE_ROOT"])


def _checkpoint(family: str) -> Any:
    @pytest.fixture(scope="session", name=family)
    def write(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A tiny checkpoint, of four blocks."""
        from mmc_testing.checkpoints import FAMILIES

        path: Path = FAMILIES[family].write(tmp_path_factory.mktemp(family), depth=4)
        return path

    return write


for _family in {entry.family for entry in CATALOG}:
    globals()[f"_{_family}"] = _checkpoint(_family)
