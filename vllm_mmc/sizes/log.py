# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The shape log: a regular log line with the sizes of this process's encoder calls.

`vllm-mmc profile` reads it.
"""

import functools
import threading
import time
import uuid
from collections.abc import Callable

from vllm.logger import init_logger

from vllm_mmc.sizes import histogram

logger = init_logger(__name__)


class ShapeLog:
    """Counts calls by size and logs all counts every `interval` seconds, at a call.

    Args:
        interval: Seconds between two lines; negative: nothing is counted or logged.
        clock: Seconds from any origin.
    """

    def __init__(
        self, interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval = interval
        self._clock = clock
        self._due = clock() + interval
        self._lock = threading.Lock()
        self._histogram = histogram.Histogram()
        self._process = uuid.uuid4().hex[:12]

    def record(self, tokens: int) -> None:
        """Count one call of an encoder.

        Args:
            tokens: Rows of its input, all items end to end. Below 1 nothing is counted.
        """
        if not self.interval >= 0 or tokens < 1:
            return
        with self._lock:
            self._histogram.add(tokens)
            now = self._clock()
            if now < self._due:
                return
            self._due = now + self.interval
            line = histogram.line(self._histogram, self._process)
        logger.info("%s", line)


@functools.cache
def shape_log(interval: float) -> ShapeLog:
    """The one shape log of this process."""
    return ShapeLog(interval)
