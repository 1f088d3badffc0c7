# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Real servers, real HTTP: ours with a compiled encoder answers as stock does.

The stock server runs first, alone; what it answered is what ours is held to.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from mmc_testing.checkpoints import FAMILIES as CHECKPOINTS
from mmc_testing.engine import Server, vllm_serve
from mmc_testing.release import is_before
from tests.e2e.content import data, file_of, image, photograph, video
from vllm_mmc import __version__
from vllm_mmc.demo import media

# Half the tokens of `default_engine_args`: vLLM profiles with the largest video.
SIZE = ("--max-model-len", "1024", "--max-num-batched-tokens", "1024")
ENV = {"VLLM_LOGGING_LEVEL": "INFO"}

# ---------------------------------------------------------------- questions


IMAGES = {
    "300x200": [photograph(300, 200)],
    "512x600": [photograph(512, 600)],
    "two images": [photograph(112, 224), photograph(280, 196)],
    "no image": [],
}
# vLLM 0.31 answers a video with 400, "unhashable type: 'dict'".
VIDEOS = (
    {}
    if is_before("0.32")
    else {
        "video": [video(4, 112, 84)],
        "image and video": [photograph(100, 100), video(3, 84, 112)],
    }
)
PNG = file_of(media.photograph_at(224, 224), "PNG")
BAD = {
    "no image format": [image(data("image/png", b"Who is this? Nobody."))],
    "truncated": [image(data("image/png", PNG[: len(PNG) // 2]))],
    "no base64": [image("data:image/png;base64,@@@@")],
    "three images": [photograph(56, 56)] * 3,  # the server was told two
}


@dataclass(frozen=True)
class Family:
    """What is asked of one kind of model.

    Attributes:
        architecture: as the log names it.
        regions: the same.
        good: answered, and by stock too.
        bad: refused.
        ours_alone: what stock cannot answer: its engine would die.
    """

    architecture: str
    regions: str
    good: dict[str, Any]
    bad: dict[str, Any]
    ours_alone: dict[str, Any]


FAMILIES = {
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        "patch embed, block, merger",
        IMAGES
        | {
            "56x56": [photograph(56, 56)],
            "84x140": [photograph(84, 140)],
            "333x77": [photograph(333, 77)],
        }
        | VIDEOS,
        # The processor takes ratios up to 200.
        BAD | {"too narrow": [photograph(1, 300)]},
        {},
    ),
    "llama4": Family(
        "Llama4ForConditionalGeneration",
        "patch embed, block, pixel shuffle, projector",
        IMAGES | {"113x40": [photograph(113, 40)], "80x500": [photograph(80, 500)]},
        BAD,
        # One tile: "Expected a.stride(-1) == 1" in stock's patch embedding on CPU.
        {"56x56": [photograph(56, 56)], "112x112": [photograph(112, 112)]},
    ),
}


@dataclass(frozen=True)
class Answer:
    status: int
    tokens: tuple[int, ...] = ()
    error: str = ""


def ask(server: Server, content: list[dict[str, Any]]) -> Answer:
    text = {"type": "text", "text": "Who is this?"}
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        try:
            answer = client.chat.completions.create(
                model=server.model,
                messages=[{"role": "user", "content": [*content, text]}],
                max_tokens=16,
                temperature=0,
                extra_body={"return_token_ids": True},
            )
        except openai.APIStatusError as error:
            return Answer(error.status_code, error=error.message)
    return Answer(200, tokens=tuple(answer.choices[0].token_ids))


# ---------------------------------------------------------------- two servers


@dataclass(frozen=True)
class Stock:
    answers: dict[str, Answer]
    log: str


SLOW = {"llama4"}  # two more servers; its engine is in tests/compile


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in FAMILIES
    ],
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture(scope="module")
def checkpoint(name: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def stock(family: Family, checkpoint: Path) -> Stock:
    """Our package is installed and switched off, and vLLM checks its variables."""
    args = (*SIZE, "--enforce-eager", "--fail-on-environ-validation")
    env = ENV | {"VLLM_MMC_DISABLE": "1"}
    with vllm_serve(checkpoint, *args, env=env) as server:
        questions = family.good | family.bad
        answers = {name: ask(server, content) for name, content in questions.items()}
        return Stock(answers, server.log.read_text())


@pytest.fixture(scope="module")
def server(
    stock: Stock,
    checkpoint: Path,
    cache_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    # An empty compile cache; what vLLM knows about model classes may be shared.
    own = tmp_path_factory.mktemp("serve")
    (cache_root / "modelinfos").mkdir(exist_ok=True)
    (own / "modelinfos").symlink_to(cache_root / "modelinfos")
    args = (*SIZE, "--compilation-config", '{"compile_mm_encoder": true}')
    env = ENV | {"VLLM_CACHE_ROOT": str(own)}
    with vllm_serve(checkpoint, *args, env=env) as running:
        yield running


def lines(log: str, text: str) -> list[str]:
    return [line for line in log.splitlines() if text in line]


def test_answers_as_stock_does(server: Server, stock: Stock, family: Family) -> None:
    for name, content in family.good.items():
        answer = ask(server, content)
        assert answer == stock.answers[name], name
        assert answer.status == 200


def test_answers_depend_on_what_is_seen(stock: Stock, family: Family) -> None:
    answers = [stock.answers[name].tokens for name in family.good]
    assert len(set(answers)) == len(answers)
    assert all(len(tokens) == 16 for tokens in answers)


def test_bad_request_is_refused_as_stock_does(
    server: Server, stock: Stock, family: Family
) -> None:
    for name, content in family.bad.items():
        answer = ask(server, content)
        assert answer == stock.answers[name], name
        assert answer.status == 400
        assert re.search("image|base64|ratio", answer.error)
        # And the next one is served.
        assert ask(server, family.good["300x200"]) == stock.answers["300x200"]


def test_answers_what_stock_cannot(server: Server, family: Family) -> None:
    for content in family.ours_alone.values():
        answer = ask(server, content)
        assert (answer.status, len(answer.tokens)) == (200, 16)


def test_log_says_once_what_is_ours(
    server: Server, stock: Stock, family: Family
) -> None:
    said = f"vllm_mmc {__version__}"
    (line,) = lines(server.log.read_text(), said)
    assert "(APIServer" in line
    assert f"serves {family.architecture}. " in line
    assert line.endswith(f"it compiles: {family.regions}.")
    (line,) = lines(stock.log, said)
    assert "switched off" in line


def test_each_region_was_compiled_once(
    server: Server, stock: Stock, name: str, family: Family
) -> None:
    for content in (family.good | family.ours_alone).values():
        ask(server, content)
    compiled = re.findall(r"\[(\w+)\] compiled in", server.log.read_text())
    assert sorted(compiled) == sorted(CHECKPOINTS[name].regions)
    assert "compiled in" not in stock.log
