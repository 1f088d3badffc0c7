# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Real pictures and speech: a photograph at any size, a video, a recorded voice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SPEECH_RATE = 16000
"""Samples per second of the recording, and of what the models take."""

DATA = Path(__file__).parent / "data"
"""`SOURCES.txt` in it says where the media come from, and that they may be shared."""


def photograph() -> "Image":
    """Returns a photograph of Grace Hopper, RGB, 512 x 600 pixels.

    Raises:
        ImportError: if Pillow, which vLLM brings, is not installed.
    """
    from PIL import Image as PILImage

    return PILImage.open(DATA / "photograph.jpg").convert("RGB")


def photograph_at(width: int, height: int) -> "Image":
    """Returns the photograph scaled to exactly width x height pixels.

    The largest centred crop of the asked shape is scaled, so nothing is stretched.
    """
    from PIL import Image as PILImage
    from PIL import ImageOps

    return ImageOps.fit(
        photograph(), (width, height), method=PILImage.Resampling.BICUBIC
    )


def video(num_frames: int, width: int, height: int) -> "np.ndarray[Any, Any]":
    """Returns a pan over the photograph, from its left to its right edge.

    Args:
        num_frames: at least 1.
        width: in pixels.
        height: in pixels.

    Returns:
        uint8 [num_frames, height, width, 3], no two frames alike.

    Raises:
        ValueError: if num_frames < 1.
    """
    import numpy as np

    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    scene = np.asarray(photograph_at(width + 4 * (num_frames - 1), height))
    lefts = [4 * i for i in range(num_frames)]
    return np.stack([scene[:, left : left + width] for left in lefts])


def speech(seconds: float, *, rate: int = SPEECH_RATE) -> "np.ndarray[Any, Any]":
    """Returns the beginning of a recorded speech, without silence before it.

    The recording is 10.7 s of John F. Kennedy's inaugural address. Longer speech is the
    same again.

    Args:
        seconds: more than 0.
        rate: samples per second to resample to, linearly.

    Returns:
        float32 [seconds * rate] between -1 and 1.

    Raises:
        ImportError: if soundfile is not installed.
    """
    import numpy as np

    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            "soundfile, which reads the recorded speech, is not installed: "
            "pip install 'vllm-mmc[demo]'"
        ) from error
    samples, _ = soundfile.read(DATA / "speech.ogg", dtype="int16")
    times = np.arange(round(seconds * rate)) * (SPEECH_RATE / rate)
    found = np.interp(times, np.arange(len(samples)), samples, period=len(samples))
    return (found / 32768).astype(np.float32)


def wav(samples: "np.ndarray[Any, Any]", rate: int = SPEECH_RATE) -> bytes:
    """Returns a WAV file of 16 bits: [samples] is mono, [samples, channels] more."""
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().clip(-32768, 32767).astype("<i2"))
    return buffer.getvalue()
