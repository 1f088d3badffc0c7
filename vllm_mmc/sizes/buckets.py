# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""How large encoder inputs are: the ranges and sizes that get graphs of their own.

Sizes count packed tokens: the rows of an encoder's input, items laid end to end.
vLLM's `compile_sizes` and `compile_ranges_endpoints` count the decoder's tokens and
never reach our regions.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
import torch.nn as nn

from vllm_mmc.settings import Settings
from vllm_mmc.sizes.log import shape_log

Range = tuple[int, int]
"""First and last number of packed tokens, both included."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Bounds:
    """What one encoder call promises to the graphs that it runs.

    Attributes:
        tokens: Packed tokens of this call.
        range: Graphs may take for granted that there are so many; None: nothing.
    """

    tokens: int
    range: Range | None

    @property
    def exact(self) -> bool:
        return self.range is not None and self.range[0] == self.range[1]


class EncoderShapes:
    """Which graphs an encoder's sizes get.

    Args:
        settings: `compile_sizes` and `compile_ranges` are used.
        limit: The most packed tokens that one call of this encoder can have, if known.
        step: Every call has a multiple of so many packed tokens.
        encoder: Its name, for errors: a model can have two.

    Raises:
        ValueError: A size or range is none that this encoder ever sees.
    """

    def __init__(
        self,
        settings: Settings,
        limit: int | None = None,
        step: int = 1,
        encoder: str = "this encoder",
    ) -> None:
        self.sizes = settings.compile_sizes
        self.ranges = settings.compile_ranges
        self.limit = limit
        self.step = step
        self.encoder = encoder
        self.log = shape_log(settings.log_shapes_interval)
        for size in self.sizes:
            self._require("compile_sizes", size, size)
        for first, last in self.ranges:
            self._require("compile_ranges", first, last)

    def _require(self, setting: str, first: int, last: int) -> None:
        reachable = last // self.step * self.step >= first
        if not reachable or (self.limit is not None and last > self.limit):
            up_to = "" if self.limit is None else f" up to {self.limit}"
            raise ValueError(
                f"{setting} has {first if first == last else [first, last]}, but "
                f"{self.encoder} sees multiples of {self.step} packed tokens{up_to}"
            )

    def bounds(self, tokens: int) -> Bounds:
        if tokens in self.sizes:
            return Bounds(tokens, (tokens, tokens))
        for first, last in self.ranges:
            if first <= tokens <= last:
                return Bounds(tokens, (first, last))
        if self.limit is not None and tokens <= self.limit:
            return Bounds(tokens, (1, self.limit))
        return Bounds(tokens, None)

    def warmup_sizes(self) -> list[int]:
        """The smallest input, and one for every graph that a request can need.

        Those are not the smallest: a dimension of size 1 hides how a tensor lies in
        memory, which graphs depend on.
        """
        step = self.step
        spans = [*self.ranges, *((size, size) for size in self.sizes)]
        sizes = {step}
        for first, last in spans:
            sizes.add(min(-(-first // step) * step + step, last // step * step))
        # And one that none of them has.
        candidates = {2 * step, *(last // step * step + step for _, last in spans)}
        for size in sorted(candidates):
            within = self.limit is None or size <= self.limit
            if within and not any(first <= size <= last for first, last in spans):
                sizes.add(size)
                break
        return sorted(sizes)


_current: ContextVar[Bounds | None] = ContextVar("encoder_bounds", default=None)


def current() -> Bounds | None:
    """Of the encoder call that is running; None outside of one."""
    return _current.get()


def encoder_forward(
    forward: Callable[Concatenate[Any, torch.Tensor, P], R],
) -> Callable[Concatenate[Any, torch.Tensor, P], R]:
    """Decorates the `forward` of an encoder, whose first argument is packed:
    [tokens, ...]. The module's `encoder_shapes`, if it has any, decide the graphs."""

    @functools.wraps(forward)
    def with_bounds(
        self: nn.Module, x: torch.Tensor, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        shapes: EncoderShapes | None = getattr(self, "encoder_shapes", None)
        if shapes is None:
            return forward(self, x, *args, **kwargs)
        shapes.log.record(x.shape[0])
        token = _current.set(shapes.bounds(x.shape[0]))
        try:
            return forward(self, x, *args, **kwargs)
        finally:
            _current.reset(token)

    return cast("Callable[Concatenate[Any, torch.Tensor, P], R]", with_bounds)
