# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Bad requests to a model that sees: name -> what is asked, and what is answered."""

import base64

import numpy as np
import torch

from tests.e2e.bad_inputs import (
    BASE64,
    EMBEDS,
    FRAME,
    GOOD_PICTURE,
    GOOD_WAV,
    GRID,
    JPEG,
    PLACEHOLDER,
    SCHEME,
    SEES,
    SPOILS,
    Bad,
    audio,
    audio_url,
    embeds,
    half,
    image_embeds,
    image_file,
    loading,
    picture,
    plain_picture,
    png_that_says,
    processor,
    spoiled,
    text,
    video,
)
from tests.e2e.content import data, encode, image

NO_IMAGE = "Failed to load image: cannot identify image file"
CUT = "Failed to load image: image file is truncated"


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
