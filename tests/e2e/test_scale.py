# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Servers of several processes, real HTTP: each answers as a server of one does."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmc_testing.engine import Server, vllm_serve
from tests.e2e.content import photograph
from tests.e2e.test_serve import ENV, SIZE, Answer, ask
from vllm_mmc.cli.bench import counters

pytestmark = pytest.mark.slow  # up to six processes for each case

COMPILED = ("--compilation-config", '{"compile_mm_encoder": true}')
# vLLM wants a NUMA node for each process, or to be told which cores it may have.
NO_BINDING = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
QUESTIONS: Mapping[str, list[dict[str, Any]]] = {
    "300x200": [photograph(300, 200)],
    "84x140": [photograph(84, 140)],
    "two images": [photograph(112, 224), photograph(280, 196)],
    "no image": [],
}
REGIONS = 3  # patch embed, block, merger
LAYERS = 4


def answers(server: Server) -> dict[str, Answer]:
    return {name: ask(server, content) for name, content in QUESTIONS.items()}


@contextlib.contextmanager
def serve(checkpoint: Path, cache: Path, *args: str) -> Iterator[Server]:
    env = ENV | NO_BINDING | {"VLLM_CACHE_ROOT": str(cache)}
    with vllm_serve(checkpoint, *SIZE, *COMPILED, *args, env=env) as server:
        yield server


@pytest.fixture
def cache(cache_root: Path, tmp_path: Path) -> Path:
    """An empty compile cache; what vLLM knows about model classes may be shared."""
    (cache_root / "modelinfos").mkdir(exist_ok=True)
    (tmp_path / "modelinfos").symlink_to(cache_root / "modelinfos")
    return tmp_path


@pytest.fixture(scope="module")
def alone(qwen2_5_vl: Path, cache_root: Path) -> dict[str, Answer]:
    """What a server with one process for the model answers."""
    with serve(qwen2_5_vl, cache_root) as server:
        found = answers(server)
    assert all((a.status, len(a.tokens)) == (200, 16) for a in found.values())
    assert len({a.tokens for a in found.values()}) == len(found)
    return found


TENSOR_PARALLEL = ("--tensor-parallel-size", "2")
CASES = {
    "tensor parallel": TENSOR_PARALLEL,
    "items split": (*TENSOR_PARALLEL, "--mm-encoder-tp-mode", "data"),
    "data parallel": ("--data-parallel-size", "2"),
}
"""What asks `vllm serve` for two processes that run an encoder."""


@pytest.mark.parametrize("name", CASES)
def test_answers_as_one_process(
    name: str, qwen2_5_vl: Path, alone: dict[str, Answer], cache: Path
) -> None:
    with serve(qwen2_5_vl, cache, *CASES[name]) as server:
        assert answers(server) == alone
        found = counters(server.url)
        log = server.log.read_text()
    # One process has compiled each graph, and the other one loads it.
    assert (found["graphs"], found["artifact_loads"]) == (REGIONS, REGIONS)
    assert (found["structures"], found["followers"]) == (2 * REGIONS, 2 * (LAYERS - 1))
    assert found["artifact_misses"] == REGIONS
    bad = ("recompiles", "unkept", "fallbacks", "rescues", "parity_failures")
    assert {name: found[name] for name in bad} == dict.fromkeys(bad, 0)
    assert len(re.findall(r"\[\w+\] compiled in", log)) == REGIONS


def test_an_encoder_beside_a_language_model(
    qwen2_5_vl: Path, alone: dict[str, Answer], cache: Path
) -> None:
    """One server has the encoder alone, the other one gets its embeddings."""

    def transfer(role: str) -> tuple[str, ...]:
        config = {
            "ec_connector": "ECExampleConnector",
            "ec_role": role,
            "ec_connector_extra_config": {"shared_storage_path": str(cache / "ec")},
        }
        return (
            *("--ec-transfer-config", json.dumps(config)),
            "--no-enable-prefix-caching",
        )

    with (
        serve(qwen2_5_vl, cache, *transfer("ec_producer")) as encoder,
        serve(qwen2_5_vl, cache, *transfer("ec_consumer")) as language,
    ):
        for name, content in QUESTIONS.items():
            if content:
                assert ask(encoder, content).status == 200
            before = counters(language.url)
            assert ask(language, content) == alone[name]
            assert counters(language.url) == before
        assert len(list((cache / "ec").glob("*/*"))) == 4  # one for each picture
        assert counters(encoder.url)["graphs"] == REGIONS
