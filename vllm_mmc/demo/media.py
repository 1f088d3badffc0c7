# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Real pictures and speech: a photograph at any size, a video, a recorded voice."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SPEECH_RATE = 16000
"""Samples per second of the recording, and of what the models take."""

INSTALL_SPEECH = "pip install --no-deps pyannote-audio==3.4.0"
"""An extra cannot ask for it: its dependencies, another torch among them, must not come
along."""


def photograph() -> "Image":
    """Returns a photograph of Grace Hopper, RGB, 512 x 600 pixels.

    It is in the public domain and comes with matplotlib.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from PIL import Image as PILImage

    try:
        from matplotlib import cbook
    except ImportError as error:
        raise ImportError(
            "the photograph comes with matplotlib, which is not installed: "
            "pip install 'vllm-mmc[demo]'"
        ) from error

    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return PILImage.open(path).convert("RGB")


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
    """Returns the beginning of a recorded conversation, from where it gets loud.

    The recording is 30 s long, at 16 kHz, and comes under the MIT licence with the
    wheel of pyannote.audio, of which nothing else is used:
    `INSTALL_SPEECH`. Longer speech is the same again.

    Args:
        seconds: more than 0.
        rate: samples per second to resample to, linearly.

    Returns:
        float32 [seconds * rate] between -1 and 1.

    Raises:
        ImportError: if that wheel is not installed.
    """
    import wave
    from importlib.metadata import PackageNotFoundError, distribution

    import numpy as np

    try:
        wheel = distribution("pyannote-audio")
    except PackageNotFoundError as error:
        raise ImportError(
            "the recorded voice comes with the wheel of pyannote.audio, which is not "
            f"installed: {INSTALL_SPEECH}"
        ) from error
    path = str(wheel.locate_file("pyannote/audio/sample/sample.wav"))
    with wave.open(path) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
    samples = np.roll(samples, -6 * SPEECH_RATE)  # it begins with 6 s of silence
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
