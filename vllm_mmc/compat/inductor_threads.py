# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile the C++ kernels of one graph side by side, without starting processes.

Why: vLLM lets Inductor compile one kernel at a time (TORCHINDUCTOR_COMPILE_THREADS=1),
    because more would start a pool of processes, for Triton. C++ kernels need threads
    only, each waiting for its compiler, and on CPU there is no Triton.
Upstream: no issue; torch/_inductor/async_compile.py ties both pools to one number.
Remove when: Inductor can use its threads without its processes.
Undo: nothing is kept; the change holds inside of `more()`.
"""

import contextlib
import os
from collections.abc import Generator
from unittest import mock

MOST = 4
"""Compilers at once; each takes up to a gigabyte."""


@contextlib.contextmanager
def more() -> Generator[None, None, None]:
    import torch
    from torch._inductor import async_compile, config

    threads = min(len(os.sched_getaffinity(0)), MOST)
    if torch.cuda.is_available() or config.compile_threads != 1 or threads == 1:
        yield
        return
    with (
        config.patch(compile_threads=threads),
        mock.patch.object(
            async_compile.AsyncCompile, "use_process_pool", return_value=False
        ),
    ):
        yield
