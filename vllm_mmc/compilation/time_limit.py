# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Give up what takes too long, in the middle of it."""

import ctypes
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager


class _Interrupt(BaseException):
    """Not an Exception: Dynamo and sympy catch those and go on."""


@contextmanager
def time_limit(seconds: float) -> Generator[None, None, None]:
    """Interrupt the block, from Python code of its own thread, when time is up.

    What runs in C is not interrupted, but what comes after it.

    Args:
        seconds: 0 or less for no limit.

    Raises:
        TimeoutError: The block has been interrupted.
    """
    if seconds <= 0:
        yield
        return
    thread, lock, state = threading.get_ident(), threading.Lock(), {"in": True}

    def interrupt() -> None:
        with lock:
            if state["in"]:
                state["interrupted"] = True
                raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
                raise_in(ctypes.c_ulong(thread), ctypes.py_object(_Interrupt))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            timer.cancel()
            with lock:
                state["in"] = False
            if "interrupted" in state:
                for _ in range(100):  # it arrives between two of Python's lines
                    time.sleep(0)
    except _Interrupt:
        raise TimeoutError(f"not done after {seconds:g} seconds") from None
