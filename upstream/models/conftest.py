# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The vLLM under test is the one in front on PYTHONPATH, without this package."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

PUBLISHED = {
    "OpenMOSS-Team/MOSS-Transcribe-Diarize": "moss_transcribe_diarize",
    "Qwen/Qwen2-Audio-7B-Instruct": "qwen2_audio",
    "Qwen/Qwen3-ASR-1.7B": "qwen3_asr",
    "fixie-ai/ultravox-v0_5-llama-3_2-1b": "ultravox",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama4",
    "mistralai/Voxtral-Mini-3B-2507": "voxtral",
    "moonshotai/Kimi-Audio-7B-Instruct": "kimi_audio",
    "openai/whisper-tiny": "whisper",
}
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def pytest_configure(config: pytest.Config) -> None:
    cache = tempfile.mkdtemp(prefix="upstream-")
    os.environ["VLLM_CACHE_ROOT"] = cache
    os.environ["VLLM_PLUGINS"] = ""
    os.environ["HF_HUB_OFFLINE"] = "1"
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint of a family, in the place of a published one."""
    from mmc_testing.checkpoints import FAMILIES

    written: dict[str, Path] = {}

    def write(family: str) -> Path:
        if family not in written:
            to = tmp_path_factory.mktemp(family)
            written[family] = FAMILIES[family].write(to, depth=4)
        return written[family]

    return write


@pytest.fixture(scope="session")
def stock(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, torch.dtype], list[list[torch.Tensor]]]:
    """What the installed vLLM makes of the batches of a family, eager."""

    def outputs(family: str, dtype: torch.dtype) -> list[list[torch.Tensor]]:
        file = tmp_path_factory.mktemp("stock") / "outputs.pt"
        name = str(dtype).removeprefix("torch.")
        subprocess.run(
            [
                sys.executable,
                HERE / "encode.py",
                family,
                checkpoint(family),
                name,
                file,
            ],
            env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
            check=True,
        )
        loaded: list[list[torch.Tensor]] = torch.load(file)
        return loaded

    return outputs


@pytest.fixture
def cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))


@pytest.fixture
def vllm_runner(
    checkpoint: Callable[[str], Path], cold_cache: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[Any]]:
    """As in vLLM's tests: an engine, which has warmed up."""
    from vllm import LLM, SamplingParams

    from mmc_testing.checkpoints import FAMILIES
    from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT, default_engine_args

    for name, value in ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    @contextmanager
    def run(model: str, **args: Any) -> Iterator[LLM]:
        family = PUBLISHED[model]
        recipe = FAMILIES[family]
        args = default_engine_args(checkpoint(family), **recipe.engine_args, **args)
        llm = LLM(**args)
        for items in recipe.samples[:2]:
            request = recipe.request(items)
            llm.generate(request, SamplingParams(max_tokens=2), use_tqdm=False)
        yield llm

    return run
