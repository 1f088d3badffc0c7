# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Real pictures: a photograph, the same at any size, and a video panned over it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


def photograph() -> "Image":
    """Returns a photograph of Grace Hopper, RGB, 512 x 600 pixels.

    It is in the public domain and comes with matplotlib.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib import cbook
    from PIL import Image as PILImage

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
