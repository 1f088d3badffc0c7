# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What a module logs, whatever the loggers above it do."""

import contextlib
import logging
from collections.abc import Iterator
from types import ModuleType


class _Catcher(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.logged: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record.getMessage())


@contextlib.contextmanager
def warnings_of(module: ModuleType) -> Iterator[list[str]]:
    """The messages that it logs at WARNING and above from here on."""
    catcher, logger = _Catcher(), logging.getLogger(module.__name__)
    logger.addHandler(catcher)
    try:
        yield catcher.logged
    finally:
        logger.removeHandler(catcher)
