# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What all tests share: a cache of their own, a tiny checkpoint, no network."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from vllm_mmc.catalog import CATALOG


def pytest_configure(config: pytest.Config) -> None:
    """vLLM's caches for the whole session; tests of a cold start take another."""
    cache = tempfile.mkdtemp(prefix="vllm_mmc-tests-")
    os.environ["VLLM_CACHE_ROOT"] = cache
    os.environ["HF_HUB_OFFLINE"] = "1"
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forked tests first: a process that has used OpenMP hangs once it is forked."""
    items.sort(key=lambda item: item.get_closest_marker("forked") is None)


@pytest.fixture(scope="session")
def cache_root() -> Path:
    return Path(os.environ["VLLM_CACHE_ROOT"])


def _checkpoint(family: str) -> Any:
    @pytest.fixture(scope="session", name=family)
    def write(tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A tiny checkpoint, of four blocks."""
        from vllm_mmc.testing.checkpoints import FAMILIES

        path: Path = FAMILIES[family].write(tmp_path_factory.mktemp(family), depth=4)
        return path

    return write


for _family in {entry.family for entry in CATALOG}:
    globals()[f"_{_family}"] = _checkpoint(_family)
