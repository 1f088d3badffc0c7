# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Every model of this package refuses audio that no encoder can use."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import BaseProcessingInfo
from vllm.multimodal.registry import _ProcessorFactories

from vllm_mmc.catalog import CATALOG
from vllm_mmc.encoder.audio_input import AudioValidationMixin, with_audio_validation
from vllm_mmc.encoder.finite import LARGEST, FiniteInputsMixin, with_finite_inputs
from vllm_mmc.models import auto

SURVEYED = [
    "GlmAsrForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "GraniteSpeechForConditionalGeneration",
    "Phi4MMForCausalLM",
]


class StockInfo(BaseProcessingInfo):
    def __init__(self, ctx: Any = None) -> None:
        super().__init__(ctx)

    def get_data_parser(self) -> MultiModalDataParser:
        return MultiModalDataParser(target_sr=16_000)


class AtLeast400Samples(AudioValidationMixin):
    @property
    def min_samples(self) -> int:
        return 400


def validated(mixin: type[AudioValidationMixin] = AudioValidationMixin) -> Any:
    stock = _ProcessorFactories(info=StockInfo, processor=None, dummy_inputs=None)
    return with_audio_validation(stock, mixin).info()


def parse(info: BaseProcessingInfo, *audios: Any) -> None:
    data = {"audio": [(audio, 16_000) for audio in audios]}
    info.parse_mm_data(data, validate=False)  # of limits


def speech(samples: int = 1_000) -> Any:
    return np.linspace(-0.5, 0.5, samples, dtype=np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    bad = speech()
    bad[[3, 500]] = value
    parse(StockInfo(), bad)
    with pytest.raises(ValueError, match="audio 1 must be finite .* found 2 .*of 1000"):
        parse(validated(), speech(), bad)


def test_the_model_says_the_least_number_of_samples() -> None:
    info = validated(AtLeast400Samples)
    parse(info, speech(400))
    with pytest.raises(ValueError, match="audio 0 must have at least 400 .* found 399"):
        parse(info, speech(399))


@pytest.mark.parametrize("factor", [1e30, 1.01 * LARGEST, -1e300])
def test_finite_samples_that_overflow_are_refused(factor: float) -> None:
    """16-bit PCM read as float32, say: the squares of a mel spectrum would overflow."""
    bad = np.array([0.5, -1.0, 0.25]) * factor
    with pytest.raises(ValueError, match="audio 1 must be finite .*; the largest is "):
        parse(validated(), speech(), bad)
    # Samples of 32 bits that nobody has scaled.
    parse(validated(), np.array([-1.0, 1.0]) * LARGEST)


SOUND = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4_800)).astype(np.float32)
MONO, STEREO = SOUND[0], SOUND
INT16 = np.round(SOUND * 2**15).astype(np.int16)
UNDERSTOOD: dict[str, tuple[Any, Any]] = {
    # What is given, and what it is equal to: both at 48 or both at 16 kHz.
    "samples, channels": (STEREO.T, STEREO),
    "samples, one channel": (MONO[:, None], MONO),
    "one channel, samples": (MONO[None], MONO),
    "six channels": (np.tile(STEREO, (3, 1)).T, np.tile(STEREO, (3, 1))),
    "reversed": (MONO[::-1], MONO[::-1].copy()),
    "float64": (STEREO.T.astype(np.float64), STEREO.astype(np.float64)),
    "float16": (STEREO.astype(np.float16), STEREO.astype(np.float16).astype("f4")),
    "list": (MONO.tolist(), MONO.astype(np.float64)),
    "list of lists": (STEREO.tolist(), STEREO.astype(np.float64)),
    "tensor": (torch.from_numpy(STEREO.T), STEREO),
    "bfloat16": (
        torch.from_numpy(MONO).bfloat16(),
        torch.from_numpy(MONO).bfloat16().float().numpy(),
    ),
    "with a gradient": (torch.from_numpy(MONO.copy()).requires_grad_(), MONO),
    "int16": (INT16.T, (INT16 / 2**15).astype(np.float32)),
    "int32": (INT16[0].astype(np.int32) << 16, (INT16[0] / 2**15).astype(np.float32)),
    "uint8": (np.array([0, 128, 192], np.uint8), np.array([-1, 0, 0.5], np.float32)),
}


def heard(audio: Any, *, stock: bool = False) -> Any:
    """The waveform that a model gets of `multi_modal_data["audio"]`."""
    info = StockInfo() if stock else validated()
    if stock:  # for a model that says so; vLLM's resampler may not be installed
        info.data_parser.target_channels = 1
        info.data_parser.audio_resampler.method = (
            validated().data_parser.audio_resampler.method
        )
    (waveform,) = info.parse_mm_data({"audio": audio}, validate=False)[
        "audio"
    ].get_all()
    return waveform


@pytest.mark.parametrize("rate", [16_000, 48_000, 44_100.0, np.int64(8_000)])
@pytest.mark.parametrize("name", UNDERSTOOD)
def test_layouts_and_types(name: str, rate: Any) -> None:
    given, same = UNDERSTOOD[name]
    waveform = heard((given, rate))
    assert waveform.ndim == 1
    assert len(waveform) == pytest.approx(max(same.shape) * 16_000 / rate, abs=1)
    np.testing.assert_array_equal(waveform, heard((same, rate), stock=True))
    np.testing.assert_array_equal(heard([waveform]), waveform)  # vLLM parses again


def test_channels_are_averaged_also_of_fewer_samples_than_channels() -> None:
    """Three samples at 48 kHz are one at 16 kHz: vLLM averages the wrong way."""
    assert len(heard((np.tile(MONO[:3], (2, 1)), 48_000))) == 1


def test_one_audio_without_a_rate() -> None:
    for audio in (MONO, [MONO], MONO.tolist(), torch.from_numpy(MONO), MONO[None]):
        np.testing.assert_array_equal(heard(audio), MONO)
    assert heard([0, 0.5, np.float32(0.25)]).tolist() == [0, 0.5, 0.25]


def test_what_vllm_knows_by_other_means_is_left_alone() -> None:
    info = validated()
    assert "audio" not in info.parse_mm_data({"audio": None}, validate=False)
    kept = info.parse_mm_data({"audio": [None, MONO]}, validate=False)["audio"]
    assert kept.get(0) is None
    np.testing.assert_array_equal(kept.get(1), MONO)
    embeddings = torch.zeros(1, 3, 8)
    kept = info.parse_mm_data({"audio": embeddings}, validate=False)["audio"]
    assert kept.data is embeddings


SHAPES = r"audio 0 must have the shape .* at most 32 channels .*found "
MISUNDERSTOOD = {
    "log-mel features": ((np.zeros((128, 3000)), 16_000), SHAPES + r"\[128, 3000\]"),
    "a square": ((np.zeros((8, 8)), 16_000), SHAPES + r"\[8, 8\]"),
    "a batch": ((np.zeros((1, 2, 9)), 16_000), SHAPES + r"\[1, 2, 9\]"),
    "one number": ((np.float32(1), 16_000), "audio 0 must be samples.*float32"),
    "an array of no dimension": (np.array(0.5), SHAPES + r"\[\]"),
    "the rate first": ((16_000, MONO), "audio 0 must be samples.*found int 16000"),
    "three of them": ((MONO, 16_000, 1), r"pair \(samples, rate\); found a tuple of 3"),
    "a name": ("speech.wav", r"audio must be samples.*; found str"),
    "names": (["speech.wav"], r"audio 0 must be samples.*; found str 'speech.wav'"),
    "ragged": (([[0.1], [0.1, 0.2]], 16_000), "audio 0 must be samples: .*inhomogen"),
    "int64": ((np.arange(9), 16_000), "as uint8, int16 or int32; found int64"),
    "complex": ((MONO + 0j, 16_000), "samples in floating point.*; found complex64"),
    "no channel": ((np.zeros((4, 0)), 48_000), "at least 1 samples.*; found 0"),
    "two axes": (STEREO.T, r"\[audios, samples\]; found \[4800, 2\]"),
    **{
        f"rate {rate}": ((MONO, rate), f"audio 0 must have a rate .* found .*{rate}")
        for rate in (0, -16_000, 0.3, np.nan, np.inf, "16000")
    },
}


@pytest.mark.parametrize("name", MISUNDERSTOOD)
def test_what_cannot_be_understood_is_refused(name: str) -> None:
    audio, message = MISUNDERSTOOD[name]
    with pytest.raises(ValueError, match=message):
        heard(audio)


def test_a_model_that_names_no_rate_takes_none() -> None:
    info = validated()
    info.data_parser.audio_resampler.target_sr = None
    with pytest.raises(ValueError, match="audio 0 must have no rate; found int 16000"):
        parse(info, MONO)


@pytest.mark.parametrize("architecture", SURVEYED)
def test_a_surveyed_model_has_the_checks(architecture: str) -> None:
    try:
        stock = auto.stock_class(architecture)
    except ImportError as error:
        pytest.skip(f"vLLM's {architecture} needs {error.name}")
    ours = getattr(auto, f"Compiled{architecture}")._processor_factory
    theirs = stock._processor_factory
    assert issubclass(ours.info, AudioValidationMixin)
    assert issubclass(ours.info, theirs.info)
    assert issubclass(ours.processor, FiniteInputsMixin)
    assert issubclass(ours.processor, theirs.processor)
    assert ours.dummy_inputs is theirs.dummy_inputs
    assert not issubclass(theirs.info, AudioValidationMixin)
    assert not issubclass(theirs.processor, FiniteInputsMixin)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.architecture)
def test_a_model_of_the_catalogue_has_the_checks_once(entry: Any) -> None:
    module, _, name = entry.model.partition(":")
    factories = getattr(importlib.import_module(module), name)._processor_factory
    info = factories.info
    assert info.__mro__.count(AudioValidationMixin) == 1
    assert factories.processor.__mro__.count(FiniteInputsMixin) == 1
    assert with_finite_inputs(factories) == factories
    again = _ProcessorFactories(info=info, processor=None, dummy_inputs=None)
    assert with_audio_validation(again, AudioValidationMixin) is again


def test_an_info_that_a_function_makes_stays() -> None:
    stock = _ProcessorFactories(
        info=lambda ctx: StockInfo(ctx), processor=None, dummy_inputs=None
    )
    assert with_audio_validation(stock, AudioValidationMixin) is stock
