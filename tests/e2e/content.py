# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What requests show: parts of a message's content, with the files inside."""

import base64
import io
from typing import Any

from PIL import Image

from vllm_mmc.demo import media


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{encode(content)}"


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}, **more}


def photograph(width: int, height: int, kind: str = "PNG") -> dict[str, Any]:
    file = file_of(media.photograph_at(width, height), kind)
    return image(data(f"image/{kind.lower()}", file))


def video(frames: int, width: int, height: int) -> dict[str, Any]:
    pictures = (
        encode(file_of(Image.fromarray(frame), "JPEG"))
        for frame in media.video(frames, width, height)
    )
    url = f"data:video/jpeg;base64,{','.join(pictures)}"
    return {"type": "video_url", "video_url": {"url": url}}


def wav(content: Any, kind: Any = "wav") -> dict[str, Any]:
    """A part with any data."""
    return {"type": "input_audio", "input_audio": {"data": content, "format": kind}}
