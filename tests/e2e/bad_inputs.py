# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Requests that no model can answer as they are, and what a server says to each."""

import base64
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

from tests.e2e.content import data, encode, file_of, image, wav
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

# ---------------------------------------------------------------- the tables

NO_IMAGE = "Failed to load image: cannot identify image file"
CUT = "Failed to load image: image file is truncated"
BASE64 = "Non-base64 digit found"
SCHEME = "The URL must be either a HTTP, data or file URL"
JPEG = picture(112, 112, "JPEG")
FRAME = f"data:video/jpeg;base64,{encode(JPEG)}"


def processor(**settings: Any) -> dict[str, Any]:
    return {"mm_processor_kwargs": settings}


def loading(modality: str, **settings: Any) -> dict[str, Any]:
    return {"media_io_kwargs": {modality: settings}}


PICTURES: dict[str, Bad] = {
    # ---- files
    "empty file": Bad([image_file(b"")], 400, NO_IMAGE),
    "no image": Bad([image_file(b"Who is this? Nobody.")], 400, NO_IMAGE),
    "half of a PNG": Bad([image_file(half(GOOD_PICTURE))], 400, CUT),
    "half of a JPEG": Bad([image_file(half(JPEG), "image/jpeg")], 400, CUT),
    "half of a WebP": Bad(
        [image_file(half(picture(112, 112, "WEBP")), "image/webp")],
        400,
        "could not create decoder object",
    ),
    "half of a GIF": Bad([image_file(half(picture(112, 112, "GIF")))], 400, CUT),
    # Pillow decodes it: another picture, without an error.
    "a few bytes are others": Bad(
        [image_file(GOOD_PICTURE[:5000] + b"\0\0\0\0" + GOOD_PICTURE[5004:])], 200
    ),
    "a PNG without pixels": Bad([image_file(png_that_says(0, 0))], 400, NO_IMAGE),
    "a PNG that promises 64 pixels": Bad([image_file(png_that_says(8, 8))], 400, CUT),
    # Pillow's error is no ValueError, and vLLM turns OSError and ValueError into 400.
    "a PNG that promises 10^10 pixels": Bad(
        [image_file(png_that_says(100_000, 100_000))],
        500,
        r"exceeds limit of \d+ pixels",
    ),
    "a PNG that promises 10^8 pixels": Bad(
        [image_file(png_that_says(10_000, 10_000))], 400, CUT
    ),
    "a WAV as an image": Bad([image_file(GOOD_WAV)], 400, NO_IMAGE),
    "an SVG": Bad(
        [image_file(b"<svg xmlns='http://www.w3.org/2000/svg'/>")], 400, NO_IMAGE
    ),
    "an EPS": Bad([image_file(picture(56, 56, "EPS"))], 400, NO_IMAGE),
    "a PDF": Bad(
        [image_file(picture(56, 56, "PDF"), "application/pdf")], 400, NO_IMAGE
    ),
    # The file says what it is; vLLM does not read the type in the URL.
    "a PNG called a JPEG": Bad([image_file(GOOD_PICTURE, "image/jpeg")], 200),
    "a PNG called a text": Bad([image_file(GOOD_PICTURE, "text/plain")], 200),
    # ---- base64 and URLs
    "no base64": Bad([image("data:image/png;base64,@@@@")], 400, BASE64),
    "cut base64": Bad([image(data("image/png", GOOD_PICTURE)[:-3])], 400, BASE64),
    "base64 in lines": Bad(
        [image("data:image/png;base64," + base64.encodebytes(GOOD_PICTURE).decode())],
        400,
        BASE64,
    ),
    "a data URL without a comma": Bad(
        [image("data:image/png;base64")], 400, "missing ',' separator"
    ),
    # vLLM's status for what it has not implemented.
    "a data URL that is not base64": Bad(
        [image("data:image/png,abc")], 501, "Only base64 data URLs are supported"
    ),
    "an empty URL": Bad([image("")], 400, r"multi_modal_data\['image'\]\[0\] is empty"),
    "no image_url": Bad([{"type": "image_url"}], 400, "image_url\n  Field required"),
    "an empty image_url": Bad(
        [{"type": "image_url", "image_url": {}}], 400, "image_url.url\n  Field required"
    ),
    "a number as URL": Bad([image(7)], 400, "should be a valid string"),
    "a list as URL": Bad([image(["data:"])], 400, "should be a valid string"),
    "null as URL": Bad([image(None)], 400, "should be a valid string"),
    "base64 alone": Bad([image(encode(GOOD_PICTURE))], 400, SCHEME),
    "a path": Bad([image("/etc/hostname")], 400, SCHEME),
    "another scheme": Bad([image("ftp://127.0.0.1/picture.png")], 400, SCHEME),
    # Of these two vLLM says that a client may try again, so 500 is meant.
    "http, nobody answers": Bad(
        [image("http://127.0.0.1:9/picture.png")], 500, "Cannot connect to host"
    ),
    "http, no such host": Bad(
        [image("http://no-such-host.invalid/picture.png")],
        500,
        "Cannot connect to host no-such-host.invalid",
    ),
    "http, no host": Bad([image("http:///picture.png")], 422, "Invalid URL"),
    "http, 404": Bad([image("{server}/picture.png")], 422, "HTTP 404 error"),
    "http, no image": Bad([image("{server}/version")], 400, NO_IMAGE),
    "a file that may not be read": Bad(
        [image("file:///etc/hostname")], 400, "must be a subpath"
    ),
    "a file outside by dots": Bad(
        [image("file://{folder}/../../etc/hostname")], 400, "must be a subpath"
    ),
    # vLLM hands on what the operating system says of files in the allowed folder.
    "no such file": Bad([image("file://{folder}/none.png")], 500, "No such file"),
    "a folder": Bad([image("file://{folder}/inner")], 500, "Is a directory"),
    "a file that is no image": Bad([image("file://{folder}/text.png")], 400, NO_IMAGE),
    # ---- sizes and counts
    "1 x 1": Bad([image_file(picture(1, 1))], 200),
    "1 x 190": Bad([image_file(picture(1, 190))], 200),
    # The processor takes ratios up to 200.
    "1 x 300": Bad([image_file(picture(1, 300))], 400, "size=1x300"),
    "300 x 1": Bad([image_file(picture(300, 1))], 400, "size=300x1"),
    "60000 x 1": Bad([image_file(plain_picture(60_000, 1))], 400, "size=60000x1"),
    # Scaled down to what the checkpoint allows.
    "5000 x 5000": Bad([image_file(plain_picture(5000, 5000))], 200),
    "three images": Bad([image_file(GOOD_PICTURE)] * 3, 400, r"At most 2 image\(s\)"),
    "hundred images": Bad(
        [image_file(picture(28, 28))] * 100, 400, r"At most 2 image\(s\)"
    ),
    "audio": Bad([audio(GOOD_WAV)], 400, r"At most 0 audio\(s\)"),
    "audio by URL": Bad(
        [audio_url(data("audio/wav", GOOD_WAV))], 400, r"At most 0 audio\(s\)"
    ),
    "longer than the model": Bad(
        [*SEES, text("Who is this? " * 200)],
        400,
        "maximum context length is 1024 tokens",
    ),
    # ---- video
    "a video that is no video": Bad(
        [video(data("video/mp4", b"Nothing moves."))],
        400,
        "Could not open video stream",
    ),
    "a video without frames": Bad([video("data:video/jpeg;base64,")], 400, NO_IMAGE),
    "frames of two sizes": Bad(
        [video(f"{FRAME},{encode(picture(84, 56, 'JPEG'))}")],
        400,
        "all input arrays must have the same shape",
    ),
    "half of a frame": Bad([video(f"{FRAME},{encode(half(JPEG))}")], 400, CUT),
    "two videos": Bad([video(FRAME)] * 2, 400, r"At most 1 video\(s\)"),
    # ---- JSON
    "an unknown part": Bad(
        [{"type": "image_uri", "image_uri": {"url": "x"}}],
        400,
        "Unsupported chat content part type: 'image_uri'",
    ),
    "a part without type": Bad([{"url": "x"}], 400, "Missing 'type' field"),
    "a part that is a number": Bad([7], 400, "should be a valid dictionary"),
    "content that is a number": Bad(7, 400, "content.*should be a valid string"),
    "no messages": Bad([], 400, "at least one message", more={"messages": []}),
    "messages that are text": Bad(
        [], 400, "body.messages.*should be a valid list", more={"messages": "Who?"}
    ),
    "a message without role": Bad(
        [], 400, "role.*Field required", more={"messages": [{"content": "Who?"}]}
    ),
    "another model": Bad(
        SEES, 404, "The model `nobody` does not exist", more={"model": "nobody"}
    ),
    # Tokens of no item are embedded as text.
    "placeholders without a picture": Bad([text(PLACEHOLDER)], 200),
    "more placeholders than pictures": Bad([*SEES, text(PLACEHOLDER)], 200),
    # ---- uuid
    "a uuid that nobody knows": Bad(
        [{"type": "image_url", "image_url": None, "uuid": "unknown"}],
        400,
        "Cache miss for image at index 0",
    ),
    "neither image nor uuid": Bad(
        [{"type": "image_url", "image_url": None}], 400, "should be a valid dictionary"
    ),
    "a uuid that is an object": Bad(
        [image(data("image/png", GOOD_PICTURE), uuid={"a": 1})], 200
    ),
    "an empty uuid": Bad([image(data("image/png", GOOD_PICTURE), uuid="")], 200),
    # ---- what a request may set, as the server trusts it. Not here: another patch_size
    # or merge_size, with which stock's engine ends.
    "an unknown argument": Bad(SEES, 200, more=processor(no_such=1)),
    "min_pixels above max_pixels": Bad(
        SEES, 200, more=processor(min_pixels=99_999, max_pixels=784)
    ),
    "negative max_pixels": Bad(
        SEES, 400, "kwargs={'max_pixels': -1", more=processor(max_pixels=-1)
    ),
    "max_pixels that are text": Bad(
        SEES, 400, "kwargs={'max_pixels': 'many'", more=processor(max_pixels="many")
    ),
    "max_pixels beyond the model": Bad(
        [image_file(plain_picture(3000, 3000))],
        400,
        "exceeds model's maximum context length",
        more=processor(max_pixels=10**9),
    ),
    "image_mean that is text": Bad(
        SEES, 400, "kwargs={'image_mean'", more=processor(image_mean=["nan"] * 3)
    ),
    "image_std of zero": Bad(
        SEES, 400, "kwargs={'image_std'", more=processor(image_std=[0, 0, 0])
    ),
    "mm_processor_kwargs that are a list": Bad(
        SEES, 400, "mm_processor_kwargs", more={"mm_processor_kwargs": [1]}
    ),
    "an unknown image_mode": Bad(
        SEES, 400, "image has wrong mode", more=loading("image", image_mode="XYZ")
    ),
    "a gray image_mode": Bad(SEES, 200, more=loading("image", image_mode="L")),
    "a background of two colours": Bad(
        SEES,
        400,
        "rgba_background_color must be a list or tuple of 3 integers",
        more=loading("image", rgba_background_color=[1, 2]),
    ),
    "media_io_kwargs that are text": Bad(
        SEES, 400, "media_io_kwargs", more={"media_io_kwargs": "image"}
    ),
    "media_io_kwargs of images that are text": Bad(
        SEES, 400, "media_io_kwargs.image", more={"media_io_kwargs": {"image": "RGB"}}
    ),
    "no frames of a video": Bad(
        [video(FRAME)], 400, "num_frames must be", more=loading("video", num_frames=0)
    ),
    # An AssertionError of vLLM's registry.
    "an unknown backend for video": Bad(
        [video(FRAME)],
        500,
        "Extension class none not found",
        more=loading("video", video_backend="none"),
    ),
    # ---- embeddings
    "embeddings that are no tensor": Bad(
        [image_embeds({"a": 1})], 400, "did not deserialize to a torch.Tensor"
    ),
    # What torch.load raises, which is no ValueError.
    "embeddings that are no file": Bad(
        [embeds("image", {"image_embeds": encode(b"Nobody"), "image_grid_thw": GRID})],
        500,
        "Weights only load failed",
    ),
    "embeddings that are no base64": Bad([embeds("image", "@@@@")], 400, BASE64),
    "embeddings without a grid": Bad(
        [image_embeds(EMBEDS, None)], 400, "should contain the fields.*image_grid_thw"
    ),
    "a grid for several images": Bad(
        [image_embeds(EMBEDS, [[1, 4, 4]])], 400, "should be a 1-D tensor"
    ),
    "embeddings and an image": Bad(
        [*SEES, image_embeds(EMBEDS)], 400, "Mixing raw image"
    ),
    "embeddings that grow": Bad(
        [image_embeds(torch.sparse_coo_tensor([[0], [0]], [1.0], (2**20, 2**20)))],
        400,
        "exceeding the [0-9]+ byte limit",
    ),
    "embeddings with NaN": Bad(
        [image_embeds(spoiled(np.nan))], 400, "image 0 must become finite", stock=SPOILS
    ),
    "embeddings with infinity": Bad(
        [image_embeds(spoiled(np.inf))], 400, "image 0 must become finite", stock=SPOILS
    ),
    "huge embeddings": Bad(
        [image_embeds(spoiled(1e30))], 400, "none beyond 2147483648", stock=SPOILS
    ),
    "embeddings of int64": Bad(
        [image_embeds(torch.ones(4, 128, dtype=torch.int64))], 200
    ),
    "more embeddings than the grid": Bad([image_embeds(EMBEDS, [1, 2, 2])], 200),
    # A RuntimeError of vLLM's processor: there is no placeholder.
    "a grid of zeros": Bad(
        [image_embeds(EMBEDS, [1, 0, 0])],
        500,
        "Expected there to be 1 prompt placeholders",
    ),
    "a grid of floats": Bad(
        [image_embeds(EMBEDS, dtype=torch.float32)], 400, "only integer tensors"
    ),
    # Not here: embeddings of another width, or with one or four dimensions, fewer of
    # them than the grid says, and a negative grid. Of these the worker raises an error,
    # and the engine ends. vLLM says of --enable-mm-embeds that it is for trusted users.
}


BROKEN = "Invalid or corrupted audio data|Invalid or unsupported audio file"
FINITE = "audio 0 must be finite samples"
SPEECH_PLACEHOLDER = "<|audio_bos|><|AUDIO|><|audio_eos|>"

SPEECH: dict[str, Bad] = {
    # ---- files
    "empty file": Bad([audio(b"")], 400, r"multi_modal_data\['audio'\]\[0\] is empty"),
    "no audio": Bad([audio(b"Who is this? Nobody.")], 400, BROKEN),
    "half of a WAV": Bad([audio(half(GOOD_WAV))], 200),
    "a picture": Bad([audio(GOOD_PICTURE)], 400, "No audio stream found"),
    # The file says what it is; vLLM does not read the format.
    "a WAV called an MP3": Bad([audio(GOOD_WAV, "mp3")], 200),
    "a WAV of an unknown format": Bad([audio(GOOD_WAV, "none")], 200),
    "no base64": Bad([wav("@@@@")], 400, BASE64),
    "cut base64": Bad([wav(encode(GOOD_WAV)[:-3])], 400, BASE64),
    # What libsndfile says of a file that it knows and cannot read is no ValueError.
    "twenty bytes of a WAV": Bad([audio(GOOD_WAV[:20])], 500, "Malformed 'fmt ' chunk"),
    "no channels": Bad(
        [audio(wav_that_says(channels=0))], 500, "Channel count is zero"
    ),
    "a rate of zero": Bad([audio(wav_that_says(rate=0))], 500, "SF_INFO"),
    "a rate of 4 GHz": Bad([audio(wav_that_says(rate=2**32 - 1))], 500, "SF_INFO"),
    "samples of no bits": Bad(
        [audio(wav_that_says(bits=0))], 500, "unimplemented format"
    ),
    # Read as 8 bits.
    "samples of 7 bits": Bad([audio(wav_that_says(bits=7))], 200),
    "a rate of 1 Hz": Bad(
        [audio(wav_that_says(rate=1))], 400, "exceeds maximum allowed duration of 600s"
    ),
    "a length beyond the file": Bad([audio(wav_that_says(size=2**31))], 200),
    # ---- samples
    "no samples": Bad(
        [audio(media.wav(np.zeros(0, np.float32)))], 400, "audio 0 must have at least"
    ),
    "one sample": Bad(
        [audio(media.wav(media.speech(2.0)[20000:20001]))], 400, "too short"
    ),
    "NaN": Bad([audio(sound(with_value(np.nan)))], 400, FINITE, stock=SPOILS),
    "infinite": Bad([audio(sound(with_value(np.inf)))], 400, FINITE, stock=SPOILS),
    "minus infinity, 64 bits": Bad(
        [audio(sound(with_value(-np.inf), "DOUBLE"))], 400, FINITE, stock=SPOILS
    ),
    "finite and huge": Bad([audio(sound(with_value(1e30)))], 400, FINITE, stock=SPOILS),
    "beyond float32": Bad(
        [audio(sound(with_value(1e300), "DOUBLE"))], 400, FINITE, stock=SPOILS
    ),
    "40 channels": Bad([audio(sound(np.zeros((16000, 40), np.float32)))], 200),
    "three hours": Bad(
        [audio_url(data("audio/flac", hours(3)))], 400, "exceeds maximum allowed"
    ),
    # ---- counts and kinds
    "three audios": Bad([audio(GOOD_WAV)] * 3, 400, r"At most 2 audio\(s\)"),
    "an image": Bad(SEES, 400, r"At most 0 image\(s\)"),
    "a video": Bad([video(FRAME)], 400, r"At most 0 video\(s\)"),
    # ---- JSON and URLs
    "no data": Bad(
        [{"type": "input_audio", "input_audio": {"format": "wav"}}], 400, "is empty"
    ),
    "no input_audio": Bad([{"type": "input_audio"}], 400, "is empty"),
    "data that are a number": Bad([wav(7)], 400, BASE64),
    # An AttributeError of vLLM's parser.
    "a list of samples": Bad(
        [{"type": "input_audio", "input_audio": [0.1]}], 500, "'list' object has no"
    ),
    "an empty URL": Bad([audio_url("")], 400, "is empty"),
    "another scheme": Bad([audio_url("gopher://127.0.0.1/speech.wav")], 400, SCHEME),
    "a data URL without a comma": Bad(
        [audio_url("data:audio/wav")], 400, "missing ',' separator"
    ),
    "http, nobody answers": Bad(
        [audio_url("http://127.0.0.1:9/speech.wav")], 500, "Cannot connect to host"
    ),
    "http, 404": Bad([audio_url("{server}/speech.wav")], 422, "HTTP 404 error"),
    "http, no audio": Bad([audio_url("{server}/version")], 400, BROKEN),
    # A RuntimeError of vLLM's: the server was started without the option.
    "a file, and none may be read": Bad(
        [audio_url("file:///etc/hostname")], 500, "allowed-local-media-path"
    ),
    "placeholders without audio": Bad([text(SPEECH_PLACEHOLDER)], 200),
    "more placeholders than audios": Bad([*HEARS, text(SPEECH_PLACEHOLDER)], 200),
    "a uuid that nobody knows": Bad(
        [{"type": "input_audio", "input_audio": None, "uuid": "unknown"}],
        400,
        "Cache miss for audio at index 0",
    ),
    # ---- what a request may not set, as the server does not trust it
    "an argument of the processor": Bad(
        HEARS, 400, "--trust-request-mm-kwargs", more=processor(sampling_rate=8000)
    ),
    "an argument of the loader": Bad(
        HEARS,
        400,
        "--trust-request-mm-kwargs",
        more=loading("audio", audio_backend="x"),
    ),
    # ---- embeddings
    "embeddings of another width": Bad(
        [embeds("audio", tensor(torch.randn(4, 64)))], 400, "hidden dimension mismatch"
    ),
    # Taken for a waveform: nothing says that they are embeddings.
    "embeddings of one dimension": Bad(
        [embeds("audio", tensor(torch.randn(512)))], 200
    ),
    "embeddings with NaN": Bad(
        [embeds("audio", tensor(spoiled(np.nan)))],
        400,
        "audio 0 must become finite",
        stock=SPOILS,
    ),
    "embeddings with infinity": Bad(
        [embeds("audio", tensor(spoiled(-np.inf)))],
        400,
        "audio 0 must become finite",
        stock=SPOILS,
    ),
    "embeddings that are no tensor": Bad(
        [embeds("audio", tensor([1, 2]))], 400, "did not deserialize to a torch.Tensor"
    ),
    "embeddings that are no file": Bad(
        [embeds("audio", encode(b"Nobody"))], 500, "Weights only load failed"
    ),
    "embeddings of another name": Bad(
        [embeds("audio", {"nothing": tensor(EMBEDS)})], 400, "audio_embeds"
    ),
    "embeddings as JSON": Bad(
        [embeds("audio", {"audio_embeds": [0.1, 0.2]})],
        400,
        "JSON arrays are only supported for metadata",
    ),
}


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
