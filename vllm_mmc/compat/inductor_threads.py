# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile the C++ kernels of one graph side by side, without starting processes.

Why: vLLM lets Inductor compile one kernel at a time (TORCHINDUCTOR_COMPILE_THREADS=1),
    because more would start a pool of processes, for Triton. C++ kernels need threads
    only, each waiting for its compiler, and on CPU there is no Triton.
Upstream: no folder, it is PyTorch's: torch/_inductor/async_compile.py has one
    number for both pools.
Remove when: Inductor can use its threads without its processes.
Undo: nothing is kept; the change holds inside of `more()`.
"""

import contextlib
import os
from collections.abc import Generator

from vllm_mmc.compat import symbols

_NEEDED = (symbols.PROCESS_POOL, symbols.COMPILE_THREADS)
MAX_COMPILERS = 4
"""Compilers at once; each takes up to a gigabyte."""


def applies() -> str | None:
    """Why it does nothing; None if it does what it is for."""
    return symbols.absent(*_NEEDED)


@contextlib.contextmanager
def more() -> Generator[None, None, None]:
    import torch

    threads = min(len(os.sched_getaffinity(0)), MAX_COMPILERS)
    wanted = not torch.cuda.is_available() and threads > 1
    if not wanted or not symbols.usable(*_NEEDED):
        yield
        return
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    if config.compile_threads != 1:
        yield
        return

    before = vars(AsyncCompile)["use_process_pool"]
    AsyncCompile.use_process_pool = classmethod(lambda _: False)
    try:
        with config.patch(compile_threads=threads):
            yield
    finally:
        AsyncCompile.use_process_pool = before
