# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Real servers, real HTTP: ours with a compiled encoder answers as stock does.

The stock server runs first, alone; what it answered is what ours is held to.
"""

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from vllm_mmc import __version__
from vllm_mmc.testing import media
from vllm_mmc.testing.engine import Server, vllm_serve

# Half the tokens of `default_engine_args`: vLLM profiles with the largest video.
SIZE = ("--max-model-len", "1024", "--max-num-batched-tokens", "1024")
ENV = {"VLLM_LOGGING_LEVEL": "INFO"}
REGIONS = {
    "CompiledQwen2_5_VisionPatchEmbed": 1,
    "CompiledQwen2_5_VisionBlock": 1,
    "CompiledQwen2_5_VisionPatchMerger": 1,
}

# ---------------------------------------------------------------- questions


def data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def photograph(width: int, height: int) -> dict[str, Any]:
    return image(data("image/png", png(media.photograph_at(width, height))))


def video(frames: int, width: int, height: int) -> dict[str, Any]:
    pictures = []
    for frame in media.video(frames, width, height):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    url = f"data:video/jpeg;base64,{','.join(pictures)}"
    return {"type": "video_url", "video_url": {"url": url}}


GOOD = {
    "56x56": [photograph(56, 56)],
    "84x140": [photograph(84, 140)],
    "333x77": [photograph(333, 77)],
    "300x200": [photograph(300, 200)],
    "512x600": [photograph(512, 600)],
    "two images": [photograph(112, 224), photograph(280, 196)],
    "video": [video(4, 112, 84)],
    "image and video": [photograph(100, 100), video(3, 84, 112)],
    "no image": [],
}
PNG = png(media.photograph_at(224, 224))
BAD = {
    "no image format": [image(data("image/png", b"Who is this? Nobody."))],
    "truncated": [image(data("image/png", PNG[: len(PNG) // 2]))],
    "no base64": [image("data:image/png;base64,@@@@")],
    "too narrow": [photograph(1, 300)],  # the processor takes ratios up to 200
    "three images": [photograph(56, 56)] * 3,  # the server was told two
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


@pytest.fixture(scope="module")
def stock(qwen2_5_vl: Path) -> Stock:
    """Our package is installed and switched off, and vLLM checks its variables."""
    args = (*SIZE, "--enforce-eager", "--fail-on-environ-validation")
    env = ENV | {"VLLM_MMC_DISABLE": "1"}
    with vllm_serve(qwen2_5_vl, *args, env=env) as server:
        answers = {name: ask(server, c) for name, c in (GOOD | BAD).items()}
        return Stock(answers, server.log.read_text())


@pytest.fixture(scope="module")
def server(
    stock: Stock,
    qwen2_5_vl: Path,
    cache_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    # An empty compile cache; what vLLM knows about model classes may be shared.
    own = tmp_path_factory.mktemp("serve")
    (cache_root / "modelinfos").mkdir(exist_ok=True)
    (own / "modelinfos").symlink_to(cache_root / "modelinfos")
    args = (*SIZE, "--compilation-config", '{"compile_mm_encoder": true}')
    env = ENV | {"VLLM_CACHE_ROOT": str(own)}
    with vllm_serve(qwen2_5_vl, *args, env=env) as running:
        yield running


def lines(log: str, text: str) -> list[str]:
    return [line for line in log.splitlines() if text in line]


@pytest.mark.parametrize("name", GOOD)
def test_answers_as_stock_does(server: Server, stock: Stock, name: str) -> None:
    answer = ask(server, GOOD[name])
    assert answer == stock.answers[name]
    assert answer.status == 200


def test_answers_depend_on_what_is_seen(stock: Stock) -> None:
    answers = [stock.answers[name].tokens for name in GOOD]
    assert len(set(answers)) == len(GOOD)
    assert all(len(tokens) == 16 for tokens in answers)


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_as_stock_does(
    server: Server, stock: Stock, name: str
) -> None:
    answer = ask(server, BAD[name])
    assert answer == stock.answers[name]
    assert answer.status == 400
    assert re.search("image|base64|ratio", answer.error)
    # And the next one is served.
    assert ask(server, GOOD["84x140"]) == stock.answers["84x140"]


def test_log_says_once_what_is_ours(server: Server, stock: Stock) -> None:
    said = f"vllm_mmc {__version__}"
    (line,) = lines(server.log.read_text(), said)
    assert "(APIServer" in line
    assert "Qwen2_5_VLForConditionalGeneration (patch embed, block, merger)" in line
    (line,) = lines(stock.log, said)
    assert "switched off" in line


def test_each_region_was_compiled_once(server: Server, stock: Stock) -> None:
    for content in GOOD.values():
        ask(server, content)
    compiled = re.findall(r"\[(\w+)\] compiled in", server.log.read_text())
    assert Counter(compiled) == REGIONS
    assert "compiled in" not in stock.log
