# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Speech through real servers: ours answers as stock does, and refuses what it must.

The stock server runs first, alone; what it answered is what ours is held to.
"""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import Server, vllm_serve
from tests.e2e.test_demo_command import GRAPHS
from vllm_mmc.demo import SHIPPED, media

TRANSCRIBES, CHATS = (
    [name for name, family in FAMILIES.items() if family.serves == way]
    for way in ("transcriptions", "chat")
)
"""By `/v1/audio/transcriptions` and by `/v1/chat/completions`."""
ENV = {"VLLM_LOGGING_LEVEL": "INFO"}


def floats(samples: np.ndarray) -> bytes:
    """A WAV file of 32-bit floats, which can say NaN."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, media.SPEECH_RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def stereo(rate: int = media.SPEECH_RATE) -> np.ndarray:
    left = media.speech(2.0, rate=rate)
    return np.stack([left, np.roll(left, 4000)], axis=1)


def holes(value: float) -> np.ndarray:
    samples = media.speech(1.0)
    samples[100:110] = value
    return samples


def pcm_as_floats() -> np.ndarray:
    """Two samples of 16 bits each are taken for one of 32: up to 3e38, all finite."""
    pcm = np.round(media.speech(2.0) * 2**15).astype("<i2").view("<f4")
    return np.where(np.isfinite(pcm), pcm, 0)


def hours(count: int) -> bytes:
    """Of silence, in a file of some 100 kB."""
    buffer = io.BytesIO()
    samples: np.ndarray = np.zeros(count * 3600 * 8000, np.int16)
    soundfile.write(buffer, samples, 8000, format="FLAC")
    return buffer.getvalue()


GOOD = {
    "0.3 s": media.wav(media.speech(0.3)),
    "3 s": media.wav(media.speech(3.0)),
    "30 s": media.wav(media.speech(30.0)),
    "stereo": media.wav(stereo()),
    "stereo at 48000 Hz": media.wav(stereo(48000), 48000),
    "at 44100 Hz": media.wav(media.speech(2.0, rate=44100), 44100),
    "at 8000 Hz": media.wav(media.speech(2.0, rate=8000), 8000),
    "silence": media.wav(np.zeros(16000, np.float32)),
    "one sample": media.wav(media.speech(2.0)[20000:20001]),
}
LONG = {"70 s": media.wav(media.speech(70.0))}  # the server cuts it into clips
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
    "finite and huge": floats(media.speech(1.0) * np.float32(1e30)),
    "16-bit PCM read as floats": floats(pcm_as_floats()),
}
"""Stock does not, and ours does."""


@dataclass(frozen=True)
class Answer:
    status: int
    text: str = ""
    error: str = ""


def ask(server: Server, family: str, wav: bytes) -> Answer:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:
        try:
            heard = (transcribe if family in TRANSCRIBES else chat)(
                client, server.model, wav
            )
        except openai.APIStatusError as error:
            return Answer(error.status_code, error=error.message)
    return Answer(200, text=heard)


def transcribe(client: openai.OpenAI, model: str, wav: bytes) -> str:
    return client.audio.transcriptions.create(
        model=model,
        file=("speech.wav", wav),
        language="en",
        temperature=0,
        extra_body={"max_completion_tokens": 16},
    ).text


def chat(client: openai.OpenAI, model: str, wav: bytes) -> str:
    audio = {"data": base64.b64encode(wav).decode(), "format": "wav"}
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": audio}],
            }
        ],
        temperature=0,
        max_completion_tokens=16,
    )
    return answer.choices[0].message.content or ""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, marks=() if family in SHIPPED else pytest.mark.slow)
        for family in TRANSCRIBES + CHATS
    ],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(family)


@pytest.fixture(scope="module")
def good(family: str) -> dict[str, bytes]:
    if family in CHATS or family == "kimi_audio":  # of which stock dies, see below
        return GOOD
    return GOOD | LONG


@pytest.fixture(scope="module")
def stock(family: str, checkpoint: Path, good: dict[str, bytes]) -> dict[str, Answer]:
    """Our package is installed and switched off."""
    with vllm_serve(
        checkpoint,
        "--enforce-eager",
        engine_args=FAMILIES[family].engine_args,
        env=ENV | {"VLLM_MMC_DISABLE": "1"},
    ) as server:
        return {name: ask(server, family, wav) for name, wav in (good | BAD).items()}


@pytest.fixture(scope="module")
def server(stock: dict[str, Answer], family: str, checkpoint: Path) -> Iterator[Server]:
    with vllm_serve(
        checkpoint,
        *("--compilation-config", '{"compile_mm_encoder": true}'),
        engine_args=FAMILIES[family].engine_args,
        env=ENV,
    ) as running:
        yield running


def test_answers_as_stock_does(
    server: Server, family: str, good: dict[str, bytes], stock: dict[str, Answer]
) -> None:
    counted = FAMILIES[family].regions
    for name, wav in good.items():
        answer, theirs = ask(server, family, wav), stock[name]
        if theirs.status == 500 and "Hz" in name:
            # Without torchaudio stock resamples for transcriptions only.
            assert "torchaudio" in theirs.error
            assert answer.status == 200
        elif theirs.status == 500:
            assert "at least 321 samples" in answer.error and name == "one sample"
        elif theirs.status == 400 and "audio_array.ndim=2" in theirs.error:
            # A tokenizer of mistral_common refuses before a model is asked.
            assert answer == theirs and "stereo" in name
        elif theirs.status == 400 and name == "stereo":
            # For some models stock takes one channel only. Ours averages for all.
            assert answer.status == 200
        elif family == "kimi_audio":
            # Stock leaves the bias of keys as it finds the memory, so it answers
            # anything. With that bias zero it answers as ours: `vllm-mmc demo`.
            assert answer.status == theirs.status
        else:
            assert answer == theirs, name
            # For some models one sample is too few.
            refused = name == "one sample" and not counted
            assert theirs.status == 200 or refused
    heard = {stock[name].text for name in good}
    # Silence, one sample and 0.3 s are nearly the same, as are 2 s at several rates,
    # and two channels at two.
    assert len(heard) >= len(good) - 5


def test_bad_audio_is_refused(
    server: Server, family: str, stock: dict[str, Answer]
) -> None:
    before = stock["3 s"]
    if family == "kimi_audio":  # see above
        before = ask(server, family, GOOD["3 s"])
    for name, wav in (BAD | WORSE).items():
        answer = ask(server, family, wav)
        # Of chats, what libsndfile says of a file is 500 before a model is asked.
        cut = name == "truncated" and family in CHATS
        assert answer.status == (500 if cut else 400), name
        if name in BAD:
            assert answer == stock[name], name
        else:
            assert re.search("audio 0 must (be finite|have at least)", answer.error)
        # And the next one is answered, and not from a cache full of NaN.
        assert ask(server, family, GOOD["3 s"]) == before, name


def test_each_region_was_compiled_once(
    server: Server, family: str, good: dict[str, bytes]
) -> None:
    for wav in good.values():
        ask(server, family, wav)
    log = server.log.read_text()
    compiled = re.findall(r"\[(\w+)\] compiled in .*\(structure (\w+)\)", log)
    assert len(compiled) == len(set(compiled))
    # Or loaded: another test of this session may have left them in the cache.
    assert len(compiled) in (0, GRAPHS[family])
    if known := FAMILIES[family].regions:
        ours = [name for name, _ in compiled if name.startswith("Compiled")]
        assert ours in ([], [*known])
    assert "graphs" in log


def test_clips_of_one_file_can_differ_in_length(server: Server, family: str) -> None:
    """Two clips of 30 s and one of 10 s in one step end the engine of stock's Kimi."""
    if family in CHATS:
        pytest.skip("nothing cuts the audio of a chat into clips")
    assert ask(server, family, LONG["70 s"]).status == 200
    assert ask(server, family, GOOD["3 s"]).status == 200
