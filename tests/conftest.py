# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What all tests share: a cache of their own, a tiny checkpoint, no network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """vLLM's caches for the whole session; tests of a cold start take another."""
    before = os.environ.get("VLLM_CACHE_ROOT")
    path = tmp_path_factory.mktemp("cache")
    os.environ["VLLM_CACHE_ROOT"] = str(path)
    yield path
    if before is None:
        del os.environ["VLLM_CACHE_ROOT"]
    else:
        os.environ["VLLM_CACHE_ROOT"] = before


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL checkpoint; blocks 1 and 3 of 4 attend fully."""
    from vllm_mmc.testing.checkpoints import tiny_qwen2_5_vl

    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), depth=4)
