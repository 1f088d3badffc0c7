# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What all tests share: a cache of their own, a tiny checkpoint, no network."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest


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


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL checkpoint; blocks 1 and 3 of 4 attend fully."""
    from vllm_mmc.testing.checkpoints import tiny_qwen2_5_vl

    return tiny_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), depth=4)


@pytest.fixture(scope="session")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama4 checkpoint; images are cut into up to four tiles."""
    from vllm_mmc.testing.checkpoints import tiny_llama4

    return tiny_llama4(tmp_path_factory.mktemp("llama4"), depth=4)


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper checkpoint."""
    from vllm_mmc.testing.checkpoints import tiny_whisper

    return tiny_whisper(tmp_path_factory.mktemp("whisper"), depth=4)


@pytest.fixture(scope="session")
def qwen3_asr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-ASR checkpoint."""
    from vllm_mmc.testing.checkpoints import tiny_qwen3_asr

    return tiny_qwen3_asr(tmp_path_factory.mktemp("qwen3_asr"), depth=4)
