# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Audio of requests: understood as one waveform, or refused with HTTP 400."""

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import BaseProcessingInfo

from vllm_mmc.compat import audio_resampler, symbols
from vllm_mmc.encoder.finite import LARGEST, with_finite_inputs

MAX_CHANNELS = 32
"""More rows are no channels of a recording. Log-mel features have 80 or 128."""


class AudioValidationMixin(BaseProcessingInfo):
    """Make one channel at the model's rate of each audio, or answer with HTTP 400.

    An audio is its samples, or the pair (samples, rate in Hz). Samples are a list of
    floats, an array or a tensor: [samples], [channels, samples] or [samples, channels],
    of which the longer side is the samples. They are floating point, or PCM of 8
    (unsigned), 16 or 32 bits. Channels are averaged.

    vLLM accepts a NaN, which then stays in the cache of keys and values: later answers
    to other requests are wrong. vLLM resamples [samples, channels] along the channels.
    The mixin goes before the stock class among the bases.

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
        """As vLLM's.

        Raises:
            ValueError: An audio cannot be understood, or no encoder can use it. The
                message says which one, what was found and what is allowed.
        """
        audios = mm_data.get("audio")
        if not (
            audios is None  # known from an earlier request
            or isinstance(audios, dict)  # features, or embeddings
            or self.data_parser.is_embeddings(audios)
        ):
            waveforms = [
                None if audio is None else self._waveform(audio, index)
                for index, audio in enumerate(_items(audios))
            ]
            mm_data = {**mm_data, "audio": waveforms}
        return super().parse_mm_data(mm_data, validate=validate)

    def _waveform(self, audio: Any, index: int) -> npt.NDArray[np.floating]:
        """One channel at the model's rate, [samples]."""
        samples, rate = audio, None
        if isinstance(audio, tuple):
            if len(audio) != 2:
                raise ValueError(
                    f"audio {index} must be samples, or the pair (samples, rate); "
                    f"found a tuple of {len(audio)}"
                )
            samples, rate = audio
        x = _channels(_array(samples, index), index)
        _check_values(x, index)
        if rate is not None and x.size:
            x = self._resample(x, rate, index)
        x = x[0] if len(x) == 1 else np.mean(x, axis=0)
        if len(x) < self.min_samples:
            raise ValueError(
                f"audio {index} must have at least {self.min_samples} samples, at the "
                f"model's rate; found {len(x)}"
            )
        return x

    def _resample(
        self, x: npt.NDArray[np.floating], rate: Any, index: int
    ) -> npt.NDArray[np.floating]:
        valid = isinstance(rate, Real) and 1 <= float(rate) < math.inf
        resampler = symbols.RESAMPLER.of(self.data_parser)
        if not valid or resampler.target_sr is None:
            allowed = "a rate in Hz of at least 1" if not valid else "no rate"
            raise ValueError(
                f"audio {index} must have {allowed}; found {_shown(rate)} after its "
                f"samples of shape {x.shape}"
            )
        return resampler.resample(np.ascontiguousarray(x), orig_sr=float(rate))


def check_requests(model: type, mixin: type[AudioValidationMixin]) -> None:
    """Let the processor of `model`, which is the stock class's, check what it gets."""
    if symbols.usable(symbols.PROCESSOR_FACTORY, symbols.PROCESSING_INFO):
        factories = symbols.PROCESSOR_FACTORY.of(model, None)
        if factories is not None:
            checking = with_finite_inputs(with_audio_validation(factories, mixin))
            symbols.PROCESSOR_FACTORY.set(model, checking)


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


def _items(audios: Any) -> Sequence[Any]:
    """The single audios of a request, told apart as vLLM tells them apart."""
    if isinstance(audios, tuple) or (
        isinstance(audios, list) and audios and isinstance(audios[0], Real)
    ):
        return [audios]
    if isinstance(audios, (np.ndarray, torch.Tensor)):
        if audios.ndim < 2:
            return [audios]
        if audios.shape[0] > audios.shape[1]:
            raise ValueError(
                "an array of several audios must have the shape [audios, samples]; "
                f"found {list(audios.shape)}. One audio is the pair (samples, rate)"
            )
        return list(audios)
    if isinstance(audios, list):
        return audios
    raise ValueError(
        "audio must be samples, the pair (samples, rate), or a list of such; found "
        f"{type(audios).__name__}"
    )


def _array(samples: Any, index: int) -> npt.NDArray[np.floating]:
    """Samples in floating point, of their own shape."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        if samples.dtype == torch.bfloat16:  # numpy has none
            samples = samples.float()
        samples = samples.numpy()
    if not isinstance(samples, (list, np.ndarray)):
        raise ValueError(
            f"audio {index} must be samples, or the pair (samples, rate): a list of "
            f"floats, an array or a tensor; found {_shown(samples)}"
        )
    try:
        x = np.asarray(samples)
    except ValueError as error:  # lists of several lengths
        raise ValueError(f"audio {index} must be samples: {error}") from None
    if x.dtype == np.uint8:
        return (x.astype(np.float32) - 128) / 128
    if x.dtype in (np.int16, np.int32):
        # Rounded once, as soundfile does it.
        return (x / -float(np.iinfo(x.dtype).min)).astype(np.float32)
    if x.dtype.kind != "f":
        raise ValueError(
            f"audio {index} must be samples in floating point, or PCM as uint8, int16 "
            f"or int32; found {x.dtype}"
        )
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _channels(x: npt.NDArray[np.floating], index: int) -> npt.NDArray[np.floating]:
    """[channels, samples]"""
    if x.ndim == 1 or (x.ndim == 2 and not x.size):
        return x.reshape(1, -1)
    channels, samples = sorted(x.shape) if x.ndim == 2 else (0, 0)
    if x.ndim != 2 or channels > MAX_CHANNELS or 1 < channels == samples:
        raise ValueError(
            f"audio {index} must have the shape [samples], [channels, samples] or "
            f"[samples, channels], with at most {MAX_CHANNELS} channels and more "
            f"samples than channels; found {list(x.shape)}"
        )
    return x.T if x.shape[0] > x.shape[1] else x


def _check_values(x: npt.NDArray[np.floating], index: int) -> None:
    largest = max(abs(float(x.min())), abs(float(x.max()))) if x.size else 0.0
    if largest <= LARGEST:
        return
    found = f"the largest is {largest:.3g}"
    if broken := np.count_nonzero(~np.isfinite(x)):
        found = f"found {broken} that are NaN or infinite, of {x.size}"
    raise ValueError(
        f"audio {index} must be finite samples, usually from -1 to 1, never beyond "
        f"{LARGEST:.0f}; {found}"
    )


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None and len(shape):
        return f"{type(value).__name__} of shape {list(shape)}"
    return f"{type(value).__name__} {value!r:.40}"
