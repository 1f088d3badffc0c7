# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Counts of encoder calls by number of tokens, and settings that follow from them.

Tokens are packed tokens: the rows of the input of one call, items laid end to end.
Nothing here needs vLLM.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

TAG = "[mmc shapes] "

# Each range and each size costs a graph: take few, and only those of many calls.
MAX_RANGES = 4
MAX_SIZES = 8
SHARE_OF_A_SIZE = 0.10
SHARE_OF_A_RANGE = 0.05
# Neighbouring sizes this many times apart belong to two ranges if they can.
GAP = 2.0
# A range is parted at its median where its sizes, rare ones aside, differ this much.
WIDE = 8.0

_LIMIT = 2**53  # what every reader of JSON can hold

Items = list[tuple[int, int]]
"""Tokens and calls, by rising tokens."""


@dataclass
class Histogram:
    """Calls by size.

    At most `max_exact` different sizes are counted exactly. A call of any other size is
    counted under the next power of two.
    """

    max_exact: int = 512
    tokens: Counter[int] = field(default_factory=Counter)
    """Tokens -> calls with exactly that many."""
    up_to: Counter[int] = field(default_factory=Counter)
    """Power of two -> calls with at most that many tokens, and more than half."""

    @property
    def total(self) -> int:
        """All calls."""
        return self.tokens.total() + self.up_to.total()

    def add(self, tokens: int) -> None:
        """Count one call; `tokens` is at least 1."""
        if tokens in self.tokens or len(self.tokens) < self.max_exact:
            self.tokens[tokens] += 1
        else:
            self.up_to[1 << (tokens - 1).bit_length()] += 1

    def items(self) -> Items:
        """All calls by tokens, those of `up_to` under their power of two."""
        return sorted((self.tokens + self.up_to).items())

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON, with text keys; `from_json` reads it."""
        found: dict[str, Any] = {"total": self.total, "tokens": _sorted(self.tokens)}
        return found | ({"up_to": _sorted(self.up_to)} if self.up_to else {})

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Histogram":
        """Read what `to_json` made.

        Raises:
            ValueError: `found` is not such a dictionary.
        """
        up_to = _counts(found.get("up_to", {}))
        if any(size & (size - 1) for size in up_to):
            raise ValueError("up_to: not a power of two")
        return cls(tokens=_counts(found.get("tokens")), up_to=up_to)

    def compile_ranges(self) -> list[list[int]]:
        """At most four [first, last], both included, that hold all sizes.

        Ranges are split at wide gaps between sizes, and very wide ranges at their
        median. Each range keeps 5 % of the calls or more. No range contains a gap.
        """
        # Zero calls of the smallest size that a power of two stands for.
        smallest = {size // 2 + 1: 0 for size in self.up_to}
        parts = [sorted((smallest | dict(self.items())).items())]
        least = SHARE_OF_A_RANGE * self.total
        while len(parts) < MAX_RANGES:
            # The first part that can be cut, the widest first.
            parts.sort(key=_width, reverse=True)
            cuts = ((i, _cut(part, least)) for i, part in enumerate(parts))
            found = next(((i, at) for i, at in cuts if at), None)
            if found is None:
                break
            i, at = found
            parts[i : i + 1] = parts[i][:at], parts[i][at:]
        parts = sorted(part for part in parts if part)
        ranges = [[part[0][0], part[-1][0]] for part in parts]
        for this, following in zip(ranges, ranges[1:]):
            if following[0] < GAP * this[1]:
                this[1] = following[0] - 1
        return ranges

    def compile_sizes(self) -> list[int]:
        """At most eight exact sizes, each of at least 10 % of the calls."""
        least = SHARE_OF_A_SIZE * self.total
        common = self.tokens.most_common(MAX_SIZES)
        return sorted(size for size, calls in common if calls >= least)


def line(histogram: Histogram, process: str) -> str:
    """The log line of a server: all calls of one process since it started.

    Args:
        histogram: The calls.
        process: A text that differs between processes.
    """
    return TAG + json.dumps({"process": process} | histogram.to_json())


@dataclass
class Readings:
    """The contents of server logs."""

    histogram: Histogram
    """The calls of all processes."""
    processes: int
    unreadable: int
    """The number of damaged lines of the shape log."""


def read(lines: Iterable[str]) -> Readings:
    """Add up the last line of every process.

    A line may have any prefix, and may be inside a string of a JSON log.
    """
    last: dict[str, Histogram] = {}
    unreadable = 0
    for text in lines:
        if TAG.strip() in text:
            try:
                process, histogram = _parse(text)
            except (ValueError, RecursionError):
                unreadable += 1
            else:
                last[process] = histogram
    merged = Histogram()
    for histogram in last.values():
        merged.tokens += histogram.tokens
        merged.up_to += histogram.up_to
    return Readings(merged, len(last), unreadable)


def _parse(text: str) -> tuple[str, Histogram]:
    """Raises: ValueError or RecursionError: The line is damaged."""
    read_one = json.JSONDecoder().raw_decode
    _, _, text = text.partition(TAG)
    if text.startswith('{\\"'):  # within a JSON string
        text, _ = read_one(f'"{text}')
    found, _ = read_one(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return str(found.get("process", "")), Histogram.from_json(found)


def _counts(found: Any) -> Counter[int]:
    if not isinstance(found, dict):
        raise ValueError("not an object")
    counts = Counter({int(size): calls for size, calls in found.items()})
    for size, calls in counts.items():
        if type(calls) is not int or not (0 < size < _LIMIT and 0 < calls < _LIMIT):
            raise ValueError(f"not a count of calls: {size}: {calls}")
    return counts


def _sorted(counts: Counter[int]) -> dict[str, int]:
    return {str(size): calls for size, calls in sorted(counts.items())}


def _width(part: Items) -> float:
    return part[-1][0] / part[0][0] if part else 0.0


def _cut(part: Items, least: float) -> int | None:
    """Where a second part should start, if anywhere: `part[:at]`, `part[at:]`.

    Both hold at least `least` calls.
    """
    calls = list(accumulate(calls for _, calls in part))
    allowed = [
        at
        for at in range(1, len(part))
        if calls[at - 1] >= least and calls[-1] - calls[at - 1] >= least
    ]
    if not allowed:
        return None

    def gap(at: int) -> float:
        return part[at][0] / part[at - 1][0]

    widest = max(allowed, key=gap)
    if gap(widest) >= GAP:
        return widest
    bulk = part[allowed[0] - 1 : allowed[-1] + 1]  # without a rare size at either end
    if _width(bulk) >= WIDE:
        return min(allowed, key=lambda at: abs(calls[at - 1] - calls[-1] / 2))
    return None
