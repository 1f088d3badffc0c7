# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A block that takes too long is interrupted, whatever it catches."""

import contextlib
import itertools
import threading

import pytest

from vllm_mmc.compilation.time_limit import time_limit


def forever() -> None:
    for _ in itertools.count():
        with contextlib.suppress(Exception):
            sum(range(1000))


def test_it_is_interrupted() -> None:
    with pytest.raises(TimeoutError, match=r"after 0\.05 seconds"), time_limit(0.05):
        forever()


def test_in_a_thread_only_that_thread() -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with time_limit(0.05):
                forever()
        except TimeoutError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1


@pytest.mark.parametrize("seconds", [60, 0, -1])
def test_what_is_done_in_time_is_left_alone(seconds: float) -> None:
    with time_limit(seconds):
        done = sum(range(10))
    assert done == 45


def test_an_error_of_the_block_is_its_own() -> None:
    with pytest.raises(KeyError), time_limit(60):
        raise KeyError
