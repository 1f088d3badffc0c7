# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What nobody can answer: refused by a live server as stock refuses it, or better.

The stock server runs first, alone. After each bad request comes a good one, which is
answered as before, by the same processes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import Server, vllm_serve
from tests.e2e import bad_inputs
from tests.e2e.bad_inputs import Bad
from tests.e2e.bad_pictures import PICTURES
from tests.e2e.bad_speech import SPEECH

pytestmark = pytest.mark.slow  # two servers for each family


@dataclass(frozen=True)
class Family:
    """What is asked of one kind of model.

    Attributes:
        bad: Name -> what is wrong.
        good: What is right, and asked in between.
        args: Of `vllm serve`.
        engine_args: The same, as an engine takes them.
    """

    bad: Mapping[str, Bad]
    good: Bad
    args: tuple[str, ...] = ()
    engine_args: Mapping[str, Any] = field(default_factory=dict)


ASKED = {
    "qwen2_5_vl": Family(
        PICTURES,
        Bad(bad_inputs.SEES, 200),
        ("--trust-request-mm-kwargs", "--allowed-local-media-path", "{folder}"),
        {"max_model_len": 1024, "max_num_batched_tokens": 1024},
    ),
    "qwen2_audio": Family(
        SPEECH,
        Bad(bad_inputs.HEARS, 200),
        engine_args=FAMILIES["qwen2_audio"].engine_args,
    ),
}


@dataclass(frozen=True)
class Answer:
    status: int
    said: str


@pytest.fixture(scope="module", params=ASKED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str) -> Family:
    return ASKED[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What requests may read from."""
    path = tmp_path_factory.mktemp("media")
    (path / "inner").mkdir()
    (path / "text.png").write_text("Nobody.")
    return path


def ask(server: Server, bad: Bad, folder: Path) -> Answer:
    asked = bad_inputs.body(bad, server.model, server=server.url, folder=str(folder))
    status, found = server.post("/v1/chat/completions", asked)
    if status == 200:
        return Answer(status, found["choices"][0]["message"]["content"])
    return Answer(status, found["error"]["message"])


@pytest.fixture(scope="module")
def serve(
    name: str, family: Family, folder: Path, request: pytest.FixtureRequest
) -> Any:
    def started(*args: str, **env: str) -> Any:
        return vllm_serve(
            request.getfixturevalue(name),
            *("--enable-mm-embeds", *args),
            *(arg.format(folder=folder) for arg in family.args),
            engine_args=family.engine_args,
            env=env,
        )

    return started


@pytest.fixture(scope="module")
def stock(serve: Any, family: Family, folder: Path) -> dict[str, Answer]:
    """Our package is installed and switched off."""
    with serve("--enforce-eager", VLLM_MMC_DISABLE="1") as server:
        return {"": ask(server, family.good, folder)} | {
            name: ask(server, bad, folder)
            for name, bad in family.bad.items()
            if not isinstance(bad.stock, str)
        }


@pytest.fixture(scope="module")
def server(stock: Any, serve: Any) -> Iterator[Server]:
    with serve("--compilation-config", '{"compile_mm_encoder": true}') as running:
        yield running


def processes(server: Server) -> set[tuple[int, float]]:
    first = psutil.Process(server.pid)
    return {(p.pid, p.create_time()) for p in (first, *first.children(recursive=True))}


def test_stock_answers_as_the_table_says(
    family: Family, stock: dict[str, Answer]
) -> None:
    wrong = {}
    for name, bad in family.bad.items():
        if not isinstance(bad.stock, str):
            answer = stock[name]
            if answer.status != (bad.stock or bad.status):
                wrong[name] = answer
    assert not wrong


def test_each_is_answered_and_the_next_is_right(
    server: Server, family: Family, folder: Path, stock: dict[str, Answer]
) -> None:
    """Status and message; then a good request, and the processes are the same."""
    good = ask(server, family.good, folder)
    assert good == stock[""] and good.status == 200
    before, wrong = processes(server), {}
    assert len(before) >= 2  # of which one has the engine
    for name, bad in family.bad.items():
        answer = ask(server, bad, folder)
        refused = answer.status != 200
        if (
            answer.status != bad.status
            or refused
            and not re.search(bad.says, answer.said, re.DOTALL)
        ):
            wrong[name] = answer
        assert ask(server, family.good, folder) == good, name
        assert processes(server) == before, name
    assert not wrong


def test_the_table_is_large_enough() -> None:
    tables = [family.bad for family in ASKED.values()]
    assert all(bad.says or bad.status == 200 for t in tables for bad in t.values())
    assert sum(bad.status != 200 for table in tables for bad in table.values()) >= 100
    # A request that ours refuses otherwise than stock does is one that spoils.
    assert {bad.stock for table in tables for bad in table.values()} <= {
        None,
        bad_inputs.SPOILS,
        200,
    }
