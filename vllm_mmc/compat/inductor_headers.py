# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Load compiled C++ kernels without preparing headers to compile some.

Why: before Inductor opens a kernel that is there, it preprocesses its headers, and
    compiles them where they are not precompiled, as on another machine: one to ten
    seconds in which a warm start compiles what it does not use.
Upstream: no folder, it is PyTorch's: torch/_inductor/codecache.py,
    CppCodeCache.load_async.
Remove when: Inductor looks for the kernel first.
Undo: nothing is kept; the change holds inside of `unprepared()`. A kernel that is not
    there after all cannot be compiled inside of it: the load fails, as for any damage.
"""

import contextlib
from collections.abc import Generator

from vllm_mmc.compat import symbols


def applies() -> str | None:
    """Why it does nothing; None if it does what it is for."""
    return symbols.PRECOMPILE_HEADER.absent()


@contextlib.contextmanager
def unprepared() -> Generator[None, None, None]:
    if not symbols.PRECOMPILE_HEADER.usable():
        yield
        return
    from torch._inductor import codecache

    before = codecache._precompile_header
    codecache._precompile_header = lambda *_, **__: ""
    try:
        yield
    finally:
        codecache._precompile_header = before
