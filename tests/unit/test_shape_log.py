# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""When the shape log speaks, and that it loses no call."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from vllm_mmc.sizes.histogram import Histogram, read
from vllm_mmc.sizes.log import ShapeLog, logger, shape_log


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged, whatever handlers vLLM has set up."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


def test_all_counts_every_interval(lines: list[str]) -> None:
    clock = Clock()
    log = ShapeLog(10.0, clock)
    for tokens in (256, 1024, 256):
        log.record(tokens)
        clock.now += 3
    assert lines == []
    clock.now = 1010.0
    log.record(64)
    (first,) = lines
    assert first.startswith("[mmc shapes] {")
    assert first.endswith('"total": 4, "tokens": {"64": 1, "256": 2, "1024": 1}}')
    clock.now = 1019.9
    log.record(64)
    assert len(lines) == 1
    clock.now = 1020.0
    log.record(64)
    assert len(lines) == 2
    # One process: the second line takes the place of the first.
    assert read(lines).histogram.tokens == {64: 3, 256: 2, 1024: 1}


def test_interval_zero_is_every_call(lines: list[str]) -> None:
    log = ShapeLog(0.0, Clock())
    log.record(1)
    log.record(1)
    assert len(lines) == 2


@pytest.mark.parametrize("interval", [-1.0, float("nan")])
def test_off(lines: list[str], interval: float) -> None:
    clock = Clock()
    log = ShapeLog(interval, clock)
    clock.now += 1e9
    log.record(256)
    assert lines == []


def test_no_tokens_is_no_call(lines: list[str]) -> None:
    log = ShapeLog(0.0, Clock())
    log.record(0)
    assert lines == []


class Yielding(Counter[int]):
    """Lets another thread in between the two halves of `counts[key] += 1`."""

    def __getitem__(self, key: int) -> int:
        value = super().__getitem__(key)
        time.sleep(0)
        return value


def test_threads_lose_no_call(lines: list[str]) -> None:
    clock = Clock()
    log = ShapeLog(10.0, clock)
    log._histogram.tokens = Yielding()

    def record() -> None:
        for _ in range(500):
            log.record(7)

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 10
    log.record(7)
    assert read(lines).histogram.tokens == {7: 4001}


def test_sizes_kept_are_bounded(lines: list[str]) -> None:
    log = ShapeLog(1e9, Clock())
    for tokens in range(1, 100_001):
        log.record(tokens)
    log.interval, log._due = 0.0, 0.0
    log.record(3)
    assert len(lines[0]) < 10_000
    histogram = read(lines).histogram
    assert histogram.total == 100_001
    assert histogram.tokens[3] == 2
    assert len(histogram.tokens) == Histogram().max_exact


def test_one_per_process() -> None:
    assert shape_log(-1.0) is shape_log(-1.0)
