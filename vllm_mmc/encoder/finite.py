# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""No NaN gets from an encoder into the cache of keys and values.

The cache is shared: a NaN that one request leaves there spoils the answers to others.
What a request brings is checked where it is made ready for the encoder, in the process
that answers the request, so that a ValueError becomes status 400. What an encoder makes
of it is known in a worker only, where an exception would end the engine: there a row
that is not finite becomes zeros, and one WARNING says so.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.utils.jsontree import json_iter_leaves

from vllm_mmc.encoder.install import in_place_of
from vllm_mmc.settings import Settings

logger = init_logger(__name__)

LARGEST = 2.0**31
"""No sample and no feature is larger: what a sample of 32 bits is before it is scaled.
Squares, which mel spectra and norms add up, stay far below float32's limit."""


def largest(x: torch.Tensor) -> float:
    """The largest magnitude; NaN if there is a NaN. The host waits for the device."""
    if not x.numel():
        return 0.0
    low, high = torch.aminmax(x.detach())
    return max(abs(float(low)), abs(float(high)))


class FiniteInputsMixin(BaseMultiModalProcessor[Any]):
    """Refuse what no encoder can use: features or embeddings with NaN or huge values.

    The mixin goes before the stock class among the bases. Only tensors on the host are
    looked at, and only items that are not in vLLM's cache, before they get into it.
    The setting `finite_check` switches it off.
    """

    @cached_property
    def finite_check(self) -> bool:
        return Settings.resolve().finite_check

    def _apply_hf_processor(self, *args: Any, **kwargs: Any) -> Any:
        """Without vLLM's cache."""
        result = super()._apply_hf_processor(*args, **kwargs)
        for modality, items in result.kwargs.items():
            self._check_items(modality, enumerate(items))
        return result

    def _merge_mm_kwargs(
        self,
        cache: Any,
        mm_hashes: Any,
        mm_is_cached: Mapping[str, Sequence[bool]],
        mm_missing_kwargs: Mapping[str, Sequence[MultiModalKwargsItem]],
        mm_missing_prompt_updates: Any,
    ) -> Any:
        """With vLLM's cache."""
        for modality, cached in mm_is_cached.items():
            missing = [index for index, known in enumerate(cached) if not known]
            items = mm_missing_kwargs.get(modality, ())
            self._check_items(modality, zip(missing, items, strict=False))
        return super()._merge_mm_kwargs(
            cache, mm_hashes, mm_is_cached, mm_missing_kwargs, mm_missing_prompt_updates
        )

    def _check_items(
        self, modality: str, items: Iterable[tuple[int, MultiModalKwargsItem | None]]
    ) -> None:
        for index, item in items:
            if self.finite_check and item is not None:
                _check_item(modality, index, item)


def with_finite_inputs(factories: Any) -> Any:
    """Put the mixin before the processor class of a model.

    Args:
        factories: vLLM's `_ProcessorFactories`.
    """
    processor = factories.processor
    if isinstance(processor, type):
        return replace(factories, processor=_checking(processor))

    def build(info: Any, dummy_inputs: Any) -> BaseMultiModalProcessor[Any]:
        # A function of vLLM chooses the class by the checkpoint.
        made = processor(info, dummy_inputs)
        return in_place_of(made, _checking(type(made)))

    return replace(factories, processor=build)


def _checking(processor: Any) -> Any:
    if issubclass(processor, FiniteInputsMixin):
        return processor
    return type(processor.__name__, (FiniteInputsMixin, processor), {})


def _check_item(modality: str, index: int, item: MultiModalKwargsItem) -> None:
    for name, field in item.items():
        for x in json_iter_leaves(field.data):
            if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_cpu):
                continue
            if not (found := largest(x)) <= LARGEST:
                raise ValueError(
                    f"{modality} {index} must become finite values, none beyond "
                    f"{LARGEST:.0f}; found {found:.3g} in its {name}, {x.dtype} of "
                    f"shape {list(x.shape)}"
                )


class FiniteEmbeddings:
    """Replaces rows of embeddings that are not finite by zeros.

    On the host, embeddings that are finite are returned as they are. On another device
    the host does not wait: what was found is read at a later call, when it has arrived.

    Args:
        model: Named in the WARNING.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._on_the_way: deque[tuple[Any, torch.Tensor, str]] = deque()

    def __call__(
        self, embeddings: MultiModalEmbeddings, inputs: Iterable[str]
    ) -> MultiModalEmbeddings:
        """Check what `embed_multimodal` returns.

        Args:
            embeddings: One tensor [..., hidden], or one [tokens, hidden] per item.
            inputs: The names of the encoder's inputs, for the WARNING.
        """
        while self._on_the_way and self._on_the_way[0][0].query():
            _, broken, names = self._on_the_way.popleft()
            self._say(broken, names)
        names = ", ".join(inputs)
        if isinstance(embeddings, torch.Tensor):
            return self._rows(embeddings, names)
        if isinstance(embeddings, (list, tuple)):
            return type(embeddings)(self._rows(x, names) for x in embeddings)
        return embeddings

    def _rows(self, x: Any, names: str) -> Any:
        if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        if x.is_cpu and math.isfinite(largest(x)):
            return x
        finite = torch.isfinite(x).all(-1, keepdim=True)
        broken = ~finite.all()
        if x.is_cpu:
            self._say(broken, names)
        else:
            event = torch.Event()
            broken = broken.to("cpu", non_blocking=True)
            event.record()
            self._on_the_way.append((event, broken, names))
        return torch.where(finite, x, 0)

    def _say(self, broken: torch.Tensor, names: str) -> None:
        if broken:
            logger.warning_once(
                "%s: the encoder made NaN or infinite embeddings of %s. Zeros took the "
                "place of these rows, so that other requests are answered as before.",
                self.model,
                names,
            )
