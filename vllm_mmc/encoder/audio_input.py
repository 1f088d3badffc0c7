# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Audio of requests: what no encoder can use is refused before it gets to one."""

from dataclasses import replace
from typing import Any

import numpy as np
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.parse import (
    AudioProcessorItems,
    MultiModalDataItems,
    MultiModalDataParser,
)
from vllm.multimodal.processing import BaseProcessingInfo

from vllm_mmc.compat import audio_resampler, symbols


class AudioValidationMixin(BaseProcessingInfo):
    """Reject empty, NaN or infinite audio with a client error (HTTP 400).

    vLLM accepts a NaN, which then stays in the cache of keys and values: later answers
    to other requests are wrong. The mixin goes before the stock class among the bases.

    Resample with soxr when torchaudio, vLLM's default resampler, is not installed.
    """

    @property
    def min_samples(self) -> int:
        """Shorter audio becomes no embedding."""
        return 1

    def get_data_parser(self) -> MultiModalDataParser:
        parser = super().get_data_parser()
        audio_resampler.choose_installed(parser)
        return parser

    def parse_mm_data(
        self, mm_data: MultiModalDataDict, *, validate: bool = True
    ) -> MultiModalDataItems:
        items = super().parse_mm_data(mm_data, validate=validate)
        audios = items.get("audio")
        if isinstance(audios, AudioProcessorItems):
            for index in range(len(audios)):
                samples = audios.get(index)
                if samples is None:  # known from an earlier request
                    continue
                if len(samples) < self.min_samples:
                    raise ValueError(
                        f"audio {index} must have at least {self.min_samples} "
                        f"samples, at the model's rate; found {len(samples)}"
                    )
                if not np.isfinite(samples).all():
                    raise ValueError(
                        f"audio {index} must be finite samples, usually from -1 to 1; "
                        f"found {np.count_nonzero(~np.isfinite(samples))} that are "
                        f"NaN or infinite, of {np.size(samples)}"
                    )
        return items


def validate_audio(model: type, mixin: type[AudioValidationMixin]) -> None:
    """Let the processor of `model`, which is the stock class's, check audio."""
    if symbols.usable(symbols.PROCESSOR_FACTORY, symbols.PROCESSING_INFO):
        factories = symbols.PROCESSOR_FACTORY.of(model, None)
        if factories is not None:
            validating = with_audio_validation(factories, mixin)
            symbols.PROCESSOR_FACTORY.set(model, validating)


def with_audio_validation(factories: Any, mixin: type[AudioValidationMixin]) -> Any:
    """Put `mixin` before the processing info class of a model's processor.

    Nothing changes for a model without audio, because the mixin finds none. A
    processing info that a function builds stays as it is: vLLM has functions for
    pictures only.

    Args:
        factories: vLLM's `_ProcessorFactories`.
    """
    info = factories.info
    if not isinstance(info, type) or issubclass(info, AudioValidationMixin):
        return factories
    return replace(factories, info=type(info.__name__, (mixin, info), {}))
