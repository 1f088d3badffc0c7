# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Bad requests to a model that hears: name -> what is asked, and what is answered."""

import numpy as np
import torch

from tests.e2e.bad_inputs import (
    BASE64,
    EMBEDS,
    FRAME,
    GOOD_PICTURE,
    GOOD_WAV,
    HEARS,
    SCHEME,
    SEES,
    SPOILS,
    Bad,
    audio,
    audio_url,
    embeds,
    half,
    hours,
    loading,
    processor,
    sound,
    spoiled,
    tensor,
    text,
    video,
    wav_that_says,
    with_value,
)
from tests.e2e.content import data, encode, wav
from vllm_mmc.demo import media

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
