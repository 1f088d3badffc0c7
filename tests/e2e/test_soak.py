# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Thousands of requests to one server: none fails, nothing is compiled, memory stays.

`SOAK_REQUESTS` says how many; each is another one, and 16 are on the way at a time.
"""

import os
import random
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import Server, vllm_serve
from tests.e2e.content import encode, photograph, video, wav
from vllm_mmc.cli.bench import counters
from vllm_mmc.demo import media

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("SOAK_REQUESTS", 2000))
AT_A_TIME = 16
ROUNDS = 20
"""Memory is read, and the probe is asked, after each of them."""
MEAN_ITEM = 260 * 260 * 3
"""Bytes of the pixels of a mean picture; a mean clip of speech is larger."""
MAY_GROW = 16 << 20
"""Bytes that a process may grow by from the third quarter to the last, beyond what
stock's grows by: each length that no request had before leaves something in the caches
of oneDNN and of the allocator, and those of the text model are stock's, too. A leak of
each request's item is more (the first test)."""


# ---------------------------------------------------------------- requests


def a_picture(chance: random.Random) -> dict[str, Any]:
    return photograph(chance.randint(20, 500), chance.randint(20, 500), "JPEG")


def a_video(chance: random.Random) -> dict[str, Any]:
    size = chance.randint(56, 150), chance.randint(56, 150)
    return video(chance.randint(1, 6), *size)


def speech(chance: random.Random) -> dict[str, Any]:
    samples = media.speech(round(chance.uniform(0.2, 29.0), 3))
    return wav(encode(media.wav(samples)))


Part = Callable[[random.Random], dict[str, Any]]
Kinds = dict[tuple[Part, ...], int]
"""What a request shows -> of ten requests so many."""
KINDS: dict[str, Kinds] = {
    "qwen2_5_vl": {
        (a_picture,): 5,
        (a_picture, a_picture): 2,
        (a_video,): 1,
        (a_picture, a_video): 1,
        (): 1,
    },
    "qwen2_audio": {(speech,): 7, (speech, speech): 2, (): 1},
}


def asked(kinds: Kinds, seed: int, model: str) -> dict[str, Any]:
    """A body that no other seed has."""
    chance = random.Random(seed)
    (parts,) = chance.choices([*kinds], [*kinds.values()])
    words = {
        "type": "text",
        "text": f"{seed}: " + "Who is this? " * chance.randint(1, 9),
    }
    content = [*(part(chance) for part in parts), words]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": chance.randint(1, 8),
        "temperature": 0,
    }


# ---------------------------------------------------------------- one server

# Half the tokens of `default_engine_args`: vLLM profiles with the largest video.
ENGINE_ARGS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"max_model_len": 1024, "max_num_batched_tokens": 1024},
    "qwen2_audio": dict(FAMILIES["qwen2_audio"].engine_args),
}


@dataclass(frozen=True)
class Round:
    """What was seen after one of the rounds.

    Attributes:
        memory: Resident bytes of each process, by its id.
        recompiles: So far; None of a server without this package.
        probe: The answer to the request that is always the same.
    """

    memory: dict[int, int]
    recompiles: float | None
    probe: str


@dataclass(frozen=True)
class Soak:
    """What was seen of one server.

    Attributes:
        before: After the first few requests.
        rounds: In turn.
        failed: What was not answered with status 200.
        answers: How many answers there were, and how many different ones.
    """

    before: Round
    rounds: list[Round]
    failed: list[Any]
    answers: tuple[int, int]


def memory(server: Server) -> dict[int, int]:
    first = psutil.Process(server.pid)
    return {
        p.pid: p.memory_info().rss for p in (first, *first.children(recursive=True))
    }


def chat(server: Server, kinds: Kinds, seed: int) -> tuple[int, Any]:
    status, found = server.post(
        "/v1/chat/completions", asked(kinds, seed, server.model)
    )
    return status, found["choices"][0]["message"]["content"] if status == 200 else found


def seen(server: Server, kinds: Kinds) -> Round:
    status, probe = chat(server, {next(iter(kinds)): 1}, -1)
    assert status == 200, probe
    return Round(memory(server), counters(server.url).get("recompiles"), probe)


SIDES: dict[str, tuple[str, dict[str, str]]] = {
    "ours": ('{"compile_mm_encoder": true}', {}),
    "stock": ("{}", {"VLLM_PLUGINS": ""}),
}


def soaked(checkpoint: Path, family: str, side: str) -> Soak:
    kinds, (config, env) = KINDS[family], SIDES[side]
    # Its pages become resident as they are written: all of them in the first half.
    room = {"max_num_seqs": AT_A_TIME, "kv_cache_memory_bytes": 64 << 20}
    with (
        vllm_serve(
            checkpoint,
            *("--compilation-config", config),
            # A cache that may grow to 4 GiB would hide a leak.
            *("--mm-processor-cache-gb", "0"),
            engine_args=ENGINE_ARGS[family] | room,
            env=env,
        ) as server,
        ThreadPoolExecutor(AT_A_TIME) as clients,
    ):
        before = seen(server, kinds)
        rounds: list[Round] = []
        answers: list[tuple[int, Any]] = []
        for seeds in (range(REQUESTS)[i::ROUNDS] for i in range(ROUNDS)):
            answers += clients.map(partial(chat, server, kinds), seeds)
            rounds.append(seen(server, kinds))
    failed = [said for status, said in answers if status != 200]
    return Soak(before, rounds, failed, (len(answers), len({str(a) for a in answers})))


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def soak(family: str, request: pytest.FixtureRequest) -> Soak:
    return soaked(request.getfixturevalue(family), family, "ours")


@pytest.fixture(scope="module")
def stock_soak(family: str, request: pytest.FixtureRequest) -> Soak:
    return soaked(request.getfixturevalue(family), family, "stock")


def growth(soak: Soak) -> list[float]:
    """Bytes of each process, from the third quarter's median to the last quarter's."""
    quarter = ROUNDS // 4
    third, last = soak.rounds[2 * quarter : 3 * quarter], soak.rounds[3 * quarter :]
    (processes,) = {tuple(seen.memory) for seen in soak.rounds}  # none ended, none came
    found = []
    for process in processes:
        a, b = (
            statistics.median(seen.memory[process] for seen in rounds)
            for rounds in (third, last)
        )
        print(f"process {process}: {a / 2**20:.1f} MiB, then {b / 2**20:.1f} MiB")
        found.append(b - a)
    return found


def test_a_leak_would_be_seen() -> None:
    """Between the middles of the two quarters there are so many requests."""
    assert MEAN_ITEM * REQUESTS / 4 > MAY_GROW


def test_none_fails(soak: Soak) -> None:
    count, different = soak.answers
    assert count == REQUESTS and not soak.failed
    assert different > REQUESTS / 4  # of one to eight tokens


def test_nothing_is_compiled(soak: Soak) -> None:
    assert {seen.recompiles for seen in (soak.before, *soak.rounds)} == {0}


def test_the_probe_is_answered_as_before(soak: Soak) -> None:
    assert {seen.probe for seen in soak.rounds} == {soak.before.probe}


def test_memory_stays(soak: Soak, stock_soak: Soak) -> None:
    """Process by process: the server, its tracker of resources, the engine."""
    for ours, stock in zip(growth(soak), growth(stock_soak), strict=True):
        assert ours - max(stock, 0) <= MAY_GROW
