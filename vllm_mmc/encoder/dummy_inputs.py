# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Inputs of several sizes for an encoder, from vLLM's own dummy-input builders."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.config import VllmConfig
from vllm.config.multimodal import (
    AudioDummyOptions,
    ImageDummyOptions,
    VideoDummyOptions,
)
from vllm.logger import init_logger
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import dummy_inputs as stock
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.utils import group_and_batch_mm_kwargs

from vllm_mmc.compat import symbols

logger = init_logger(__name__)

OPTIONS: Mapping[str, tuple[tuple[int, Any], ...]] = {
    # Items in the batch; width and height in pixels, frames, samples.
    "image": (
        (1, ImageDummyOptions(count=1, width=448, height=336)),
        (1, ImageDummyOptions(count=1, width=56, height=56)),
        (3, ImageDummyOptions(count=1, width=140, height=224)),
    ),
    "video": (
        (1, VideoDummyOptions(count=1, num_frames=8, width=224, height=168)),
        (1, VideoDummyOptions(count=1, num_frames=2, width=56, height=56)),
        (2, VideoDummyOptions(count=1, num_frames=4, width=112, height=140)),
    ),
    "audio": (
        (1, AudioDummyOptions(count=1, length=160_000)),
        (1, AudioDummyOptions(count=1, length=4_000)),
        (3, AudioDummyOptions(count=1, length=48_000)),
    ),
}
"""For each modality: an input in between, the smallest, and several items."""


def batches(vllm_config: VllmConfig) -> Iterator[dict[str, Any]]:
    """What `embed_multimodal` takes, of each modality and size that the model allows.

    A size that the model's builder refuses is left out.
    """
    model_config = vllm_config.model_config
    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    device = vllm_config.device_config.device
    for modality, limit in processor.info.allowed_mm_limits.items():
        for items, options in OPTIONS.get(modality, ()) if limit else ():
            if modality == "audio":
                # Some builders leave the length out, or cut it to a few milliseconds.
                audios = functools.partial(_audios, options.length)
                if symbols.DUMMY_AUDIOS.usable():
                    symbols.DUMMY_AUDIOS.set(processor.dummy_inputs, audios)
            try:
                with _silent():
                    inputs = processor.get_dummy_inputs(
                        model_config.max_model_len, {modality: 1}, {modality: options}
                    )
                made = processor.apply(inputs, TimingContext(enabled=False))
                item = made["mm_kwargs"][modality][0]
            except Exception as error:
                logger.debug("No dummy %s of %s: %r", modality, options, error)
                continue
            grouped = group_and_batch_mm_kwargs(
                [(modality, item)] * items, device=device, pin_memory=False
            )
            for _, _, batch in grouped:
                yield dict(batch)


@contextmanager
def _silent() -> Iterator[None]:
    """Without vLLM's WARNING that an input is larger than what the model takes."""
    before, stock.logger.disabled = stock.logger.disabled, True
    try:
        yield
    finally:
        stock.logger.disabled = before


def _audios(samples: int, *, num_audios: int, **_: Any) -> list[npt.NDArray[Any]]:
    return [np.zeros(samples)] * num_audios
