# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Of the processes that start together, one compiles an entry, and the others wait."""

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

from vllm.logger import init_logger

logger = init_logger(__name__)

WAIT_SECONDS = 300.0
"""How long a process waits for another one. Then it compiles as well."""
_LOOK_SECONDS = 0.05


@contextlib.contextmanager
def turn(directory: Path) -> Generator[None, None, None]:
    """Wait for the process that makes this entry; if there is none, be it.

    Nobody waits twice: who has waited holds nothing, so where the entry was not kept
    the other processes make it side by side. The lock ends with its process. Where
    there can be no lock (a cache that cannot be written) nobody waits.

    Args:
        directory: The entry's directory, which need not be there.
    """
    path = directory.with_name(f".turn-{directory.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        yield
        return
    try:
        first = _locked(lock)
        if not first:
            _wait(lock, directory.name)
            # A process that was forked meanwhile has the lock as well.
            fcntl.flock(lock, fcntl.LOCK_UN)
        try:
            yield
        finally:
            if first:
                path.unlink(missing_ok=True)
                fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _wait(lock: int, name: str) -> None:
    logger.info("Waiting for another process, which compiles %s.", name)
    start = time.monotonic()
    while not _locked(lock):
        if time.monotonic() - start > WAIT_SECONDS:
            logger.warning(
                "Another process has not compiled %s in %.0f s: compiling it here too.",
                name,
                WAIT_SECONDS,
            )
            return
        time.sleep(_LOOK_SECONDS)
