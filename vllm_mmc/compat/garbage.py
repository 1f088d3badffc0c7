# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Run no garbage collection while a graph is made, loaded or saved.

Why: the garbage collector may run a finalizer while Dynamo's FakeTensorMode is active.
    vLLM's `CPUDNNLGEMMHandler.__del__` (one for each linear layer on CPU) reads a
    tensor. After a model was dropped, that read recurses without end under
    FakeTensorMode, and the interpreter aborts, or nothing can be traced any more.
Upstream: upstream/onednn_finalizer
Remove when: each supported release has it, and no other finalizer reads a tensor.
Undo: nothing is kept; the change holds inside of `kept()`.
"""

import contextlib
import gc
from collections.abc import Generator


def applies() -> str | None:
    """None: it needs nothing of vLLM's, and is right for any finalizer."""
    return None


@contextlib.contextmanager
def kept() -> Generator[None, None, None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
