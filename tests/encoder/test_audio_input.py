# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Every model of this package refuses audio that no encoder can use."""

import importlib
from typing import Any

import numpy as np
import pytest
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import BaseProcessingInfo
from vllm.multimodal.registry import _ProcessorFactories

from vllm_mmc.catalog import CATALOG
from vllm_mmc.encoder.audio_input import AudioValidationMixin, with_audio_validation
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
    assert (ours.processor, ours.dummy_inputs) == (
        theirs.processor,
        theirs.dummy_inputs,
    )
    assert not issubclass(theirs.info, AudioValidationMixin)


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.architecture)
def test_a_model_of_the_catalogue_has_the_checks_once(entry: Any) -> None:
    module, _, name = entry.model.partition(":")
    info = getattr(importlib.import_module(module), name)._processor_factory.info
    assert info.__mro__.count(AudioValidationMixin) == 1
    again = _ProcessorFactories(info=info, processor=None, dummy_inputs=None)
    assert with_audio_validation(again, AudioValidationMixin) is again


def test_an_info_that_a_function_makes_stays() -> None:
    stock = _ProcessorFactories(
        info=lambda ctx: StockInfo(ctx), processor=None, dummy_inputs=None
    )
    assert with_audio_validation(stock, AudioValidationMixin) is stock
