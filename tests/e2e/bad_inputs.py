# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the tables of bad requests (`bad_pictures`, `bad_speech`) are made of."""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from PIL import Image

from tests.e2e.content import data, encode, file_of, image
from vllm_mmc.demo import media

Samples: TypeAlias = npt.NDArray[Any]
SPOILS = "stock keeps the NaN in its cache of keys and values"


@dataclass(frozen=True)
class Bad:
    """A request to `/v1/chat/completions`.

    Attributes:
        content: Of its one message: what stands before the question, or, unless it is a
            list, all of it.
        status: Of the answer, ours and stock's.
        says: A regular expression that is found in the answer's error message.
        more: Fields of the request's body, beside the usual ones or in their place.
        stock: The status of stock's answer, if it is another one, or why stock is not
            asked.
    """

    content: Any
    status: int
    says: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    stock: int | str | None = None


# ---------------------------------------------------------------- files


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    """A file with the photograph."""
    return file_of(media.photograph_at(width, height), kind)


def half(file: bytes) -> bytes:
    return file[: len(file) // 2]


def plain_picture(width: int, height: int) -> bytes:
    """One bit for each pixel: small files of any size."""
    return file_of(Image.new("1", (width, height)), "PNG")


def png_that_says(width: int, height: int) -> bytes:
    """A header alone, which promises pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def sound(samples: Samples, kind: str = "FLOAT") -> bytes:
    """A WAV file of floats, which can say NaN."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, media.SPEECH_RATE, format="WAV", subtype=kind)
    return buffer.getvalue()


def hours(count: int) -> bytes:
    """Of silence, in a file of some 100 kB."""
    buffer = io.BytesIO()
    samples: Samples = np.zeros(count * 3600 * 8000, np.int16)
    soundfile.write(buffer, samples, 8000, format="FLAC")
    return buffer.getvalue()


def with_value(value: float) -> Samples:
    samples: Samples = media.speech(1.0).astype(np.float64)
    samples[100:110] = value
    return samples


def wav_that_says(
    channels: int = 1, rate: int = 16000, bits: int = 16, size: int | None = None
) -> bytes:
    """One second of 16-bit samples, whatever its header says of it."""
    pcm = (media.speech(1.0) * 32767).astype("<i2").tobytes()
    size = len(pcm) if size is None else size
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame % 2**32, frame, bits)
    body = (
        b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    )
    return b"RIFF" + struct.pack("<I", (len(body) + size) % 2**32) + body + pcm


def tensor(x: Any) -> str:
    buffer = io.BytesIO()
    torch.save(x, buffer)
    return encode(buffer.getvalue())


# ---------------------------------------------------------------- parts of a message


def image_file(content: bytes, kind: str = "image/png") -> dict[str, Any]:
    return image(data(kind, content))


def video(url: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def audio_url(url: Any) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


def audio(content: bytes, kind: str = "wav") -> dict[str, Any]:
    part = {"data": encode(content), "format": kind}
    return {"type": "input_audio", "input_audio": part}


def embeds(modality: str, value: Any) -> dict[str, Any]:
    return {"type": f"{modality}_embeds", f"{modality}_embeds": value}


def image_embeds(
    x: Any, grid: Any = (1, 4, 4), dtype: torch.dtype = torch.int64
) -> dict[str, Any]:
    """Of 1 x 2 x 2 embeddings of width 128, if all is well."""
    fields = {"image_embeds": tensor(x)}
    if grid is not None:
        fields["image_grid_thw"] = tensor(torch.tensor(grid, dtype=dtype))
    return embeds("image", fields)


def text(words: Any) -> dict[str, Any]:
    return {"type": "text", "text": words}


GOOD_PICTURE = picture(112, 112)
GOOD_WAV = media.wav(media.speech(1.0))
EMBEDS = torch.randn(4, 128, generator=torch.manual_seed(0))


def spoiled(value: float) -> torch.Tensor:
    x = EMBEDS.clone()
    x[1, 7] = value
    return x


GRID = tensor(torch.tensor([1, 4, 4]))
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
SEES = [image_file(GOOD_PICTURE)]
HEARS = [audio(GOOD_WAV)]
BASE64 = "Non-base64 digit found"
SCHEME = "The URL must be either a HTTP, data or file URL"
JPEG = picture(112, 112, "JPEG")
FRAME = f"data:video/jpeg;base64,{encode(JPEG)}"


def processor(**settings: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": settings}


def loading(modality: str, **settings: Any) -> dict[str, Any]:
    return {"media_io_kwargs": {modality: settings}}


# ---------------------------------------------------------------- requests


def body(bad: Bad, model: str, **places: str) -> dict[str, Any]:
    """Returns the request's body.

    Args:
        bad: Of the tables.
        model: Its name.
        places: What stands in URLs for {server} and {folder}.
    """
    content = bad.content
    if isinstance(content, list):
        content = [*content, text("Who is this?")]
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        "temperature": 0,
        **bad.more,
    }
    written = json.dumps(asked)
    for name, value in places.items():
        written = written.replace("{" + name + "}", value)
    known: dict[str, Any] = json.loads(written)
    return known
