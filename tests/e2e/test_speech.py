# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`/v1/audio/transcriptions` of real servers: ours answers as stock does.

The stock server runs first, alone; what it answered is what ours is held to.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile

from vllm_mmc.testing import media
from vllm_mmc.testing.engine import Server, vllm_serve

AUDIO = ("--limit-mm-per-prompt", '{"audio": 1}')
ARGS = {"whisper": (*AUDIO, "--max-model-len", "448"), "qwen3_asr": AUDIO}
REGIONS = {
    "whisper": "CompiledWhisperEncoderLayer",
    "qwen3_asr": "CompiledQwen3OmniMoeAudioEncoderLayer",
}
ENV = {"VLLM_LOGGING_LEVEL": "INFO"}


def floats(samples: np.ndarray) -> bytes:
    """A WAV file of 32-bit floats, which can say NaN."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, media.SPEECH_RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def stereo() -> np.ndarray:
    left = media.speech(2.0)
    return np.stack([left, np.roll(left, 4000)], axis=1)


def holes(value: float) -> np.ndarray:
    samples = media.speech(1.0)
    samples[100:110] = value
    return samples


def hours(count: int) -> bytes:
    """Of silence, in a file of some 100 kB."""
    buffer = io.BytesIO()
    samples = np.zeros(count * 3600 * 8000, np.int16)
    soundfile.write(buffer, samples, 8000, format="FLAC")
    return buffer.getvalue()


GOOD = {
    "0.3 s": media.wav(media.speech(0.3)),
    "3 s": media.wav(media.speech(3.0)),
    "30 s": media.wav(media.speech(30.0)),
    "70 s": media.wav(media.speech(70.0)),  # the server cuts it into clips
    "stereo": media.wav(stereo()),
    "at 44.1 kHz": media.wav(media.speech(2.0, rate=44100), 44100),
    "at 8 kHz": media.wav(media.speech(2.0, rate=8000), 8000),
    "silence": media.wav(np.zeros(16000, np.float32)),
    "one sample": media.wav(media.speech(2.0)[20000:20001]),
}
BAD = {
    "no file": b"",
    "no audio": b"Who is this? Nobody.",
    "3 hours": hours(3),
    "truncated": media.wav(media.speech(1.0))[:20],
}
"""Stock refuses them."""
WORSE = {
    "no samples": media.wav(np.zeros(0, np.float32)),
    "NaN": floats(holes(np.nan)),
    "infinite": floats(holes(np.inf)),
}
"""Stock does not, and ours does."""


@dataclass(frozen=True)
class Answer:
    status: int
    text: str = ""
    error: str = ""


def ask(server: Server, wav: bytes) -> Answer:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        try:
            answer = client.audio.transcriptions.create(
                model=server.model,
                file=("speech.wav", wav),
                language="en",
                temperature=0,
                extra_body={"max_completion_tokens": 16},
            )
        except openai.APIStatusError as error:
            return Answer(error.status_code, error=error.message)
    return Answer(200, text=answer.text)


@pytest.fixture(
    scope="module",
    params=["whisper", pytest.param("qwen3_asr", marks=pytest.mark.slow)],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(family)


@pytest.fixture(scope="module")
def stock(family: str, checkpoint: Path) -> dict[str, Answer]:
    """Our package is installed and switched off."""
    args = (*ARGS[family], "--enforce-eager")
    with vllm_serve(checkpoint, *args, env=ENV | {"VLLM_MMC_DISABLE": "1"}) as server:
        return {name: ask(server, wav) for name, wav in (GOOD | BAD).items()}


@pytest.fixture(scope="module")
def server(stock: dict[str, Answer], family: str, checkpoint: Path) -> Iterator[Server]:
    args = (*ARGS[family], "--compilation-config", '{"compile_mm_encoder": true}')
    with vllm_serve(checkpoint, *args, env=ENV) as running:
        yield running


def test_transcribes_as_stock_does(server: Server, stock: dict[str, Answer]) -> None:
    for name, wav in GOOD.items():
        answer = ask(server, wav)
        assert (answer, answer.status) == (stock[name], 200), name
    heard = {stock[name].text for name in GOOD}
    # Silence, one sample and 0.3 s are nearly the same, as are 2 s at several rates.
    assert len(heard) >= len(GOOD) - 4


def test_bad_audio_is_refused(server: Server, stock: dict[str, Answer]) -> None:
    for name, wav in (BAD | WORSE).items():
        answer = ask(server, wav)
        assert answer.status == 400, name
        if name in BAD:
            assert answer == stock[name]
        else:
            assert re.search("audio 0 must (be finite|have at least one)", answer.error)
        # And the next one is answered, and not from a cache full of NaN.
        assert ask(server, GOOD["3 s"]) == stock["3 s"], name


def test_the_encoder_was_compiled_once(server: Server, family: str) -> None:
    for wav in GOOD.values():
        ask(server, wav)
    compiled = re.findall(r"\[(\w+)\] compiled in", server.log.read_text())
    # Or loaded: another test of this session may have left it in the cache.
    assert compiled in ([], [REGIONS[family]])
    assert "graphs" in server.log.read_text()
