# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Which sizes of an encoder's input get graphs of their own.

Sizes count packed tokens: the rows of an encoder's input, items laid end to end.
vLLM's `compile_sizes` and `compile_ranges_endpoints` count the decoder's tokens and
never reach our regions.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
import torch.nn as nn

from vllm_mmc.settings import Settings
from vllm_mmc.sizes.log import shape_log

Range = tuple[int, int]
"""First and last number of packed tokens, both included."""

MEASURED_TOKENS = 1024
"""At most so many packed tokens are timed: calls of few tokens only show the host."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class TokenRange:
    """The size of one encoder call, and the range that its graphs may assume.

    Attributes:
        tokens: The number of packed tokens of this call.
        range: The range of packed tokens that graphs may assume; None: any number.
    """

    tokens: int
    range: Range | None

    @property
    def exact(self) -> bool:
        return self.range is not None and self.range[0] == self.range[1]


class TokenBuckets:
    """Which size of an encoder's input gets which graph.

    Args:
        settings: `compile_sizes` and `compile_ranges` are used.
        limit: The most packed tokens that one call of this encoder can have, if known.
        step: The number of packed tokens of every call is a multiple of this.
        encoder: The encoder's name, for errors: a model can have two encoders.

    Raises:
        ValueError: This encoder never has that size, or a size in that range.
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
        self.measures = settings.measure == "warmup"
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

    def bounds(self, tokens: int) -> TokenRange:
        if tokens in self.sizes:
            return TokenRange(tokens, (tokens, tokens))
        for first, last in self.ranges:
            if first <= tokens <= last:
                return TokenRange(tokens, (first, last))
        if self.limit is not None and tokens <= self.limit:
            return TokenRange(tokens, (1, self.limit))
        return TokenRange(tokens, None)

    def warmup_sizes(self) -> list[int]:
        """The smallest input, and one input for every graph that a request can need.

        With the setting `measure`, also one large enough to tell which way is faster.

        Use a size above the minimum of a graph: a dimension of size 1 has an arbitrary
        stride, so its call signature would not match later calls.
        """
        step = self.step
        spans = [*self.ranges, *((size, size) for size in self.sizes)]
        sizes = {step}
        for first, last in spans:
            sizes.add(min(-(-first // step) * step + step, last // step * step))
        # And one size outside of all spans, for the general graph.
        candidates = {2 * step, *(last // step * step + step for _, last in spans)}
        for size in sorted(candidates):
            within = self.limit is None or size <= self.limit
            if within and not any(first <= size <= last for first, last in spans):
                sizes.add(size)
                break
        if self.measures:
            most = min(MEASURED_TOKENS, self.limit or MEASURED_TOKENS)
            sizes.add(max(most // step, 1) * step)
        return sorted(sizes)

    def with_ranges_of(self, sizes: Sequence[int], others: Iterable[int]) -> list[int]:
        """`sizes`, and one of `others` for each range that none of them is in."""
        known = {self.bounds(size).range for size in sizes}
        more = {self.bounds(size).range: size for size in others}
        return sorted({*sizes, *(more[r] for r in more.keys() - known)})


_current: ContextVar[TokenRange | None] = ContextVar("encoder_bounds", default=None)


current: Callable[[], TokenRange | None] = _current.get
"""The bounds of the encoder call that is running; None outside of a call."""


def encoder_forward(
    forward: Callable[Concatenate[Any, torch.Tensor, P], R],
) -> Callable[Concatenate[Any, torch.Tensor, P], R]:
    """Decorates an encoder's `forward` whose first argument is packed, [tokens, ...].

    The module's `encoder_shapes`, if there are any, choose the graphs.
    """

    @functools.wraps(forward)
    def with_bounds(
        self: nn.Module, x: torch.Tensor, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        shapes: TokenBuckets | None = getattr(self, "encoder_shapes", None)
        if shapes is None:
            return forward(self, x, *args, **kwargs)
        shapes.log.record(x.shape[0])
        token = _current.set(shapes.bounds(x.shape[0]))
        try:
            return forward(self, x, *args, **kwargs)
        finally:
            _current.reset(token)

    return cast("Callable[Concatenate[Any, torch.Tensor, P], R]", with_bounds)
