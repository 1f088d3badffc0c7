# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The private directory in which a graph is loaded or compiled."""

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import torch
import vllm.envs as envs
from torch._inductor import cpu_vec_isa

from vllm_mmc.cache.key import root


@functools.cache  # the object must live: its end is the directory's end
def _scratch(process: int) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vllm_mmc-")


@contextlib.contextmanager
def work_directory(name: str) -> Generator[Path, None, None]:
    """A private, empty directory to load or compile an entry of this name in.

    Entries are copied out of the cache before they are opened and into it when they
    are complete: what was checked is what is used, a cache may be read-only, and
    kernels that are written later (by autotuning) have a place.
    """
    work_dir = Path(_scratch(os.getpid()).name) / name
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir()
    _check_vector_instructions()
    with _inductor_directory(work_dir / "inductor"):
        yield work_dir


@contextlib.contextmanager
def _inductor_directory(directory: Path) -> Generator[None, None, None]:
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@functools.cache
def _check_vector_instructions() -> None:
    """Inductor compiles a test for each instruction set, once in every directory."""
    if envs.VLLM_DISABLE_COMPILE_CACHE or torch.cuda.is_available():
        return
    with contextlib.suppress(OSError):
        tests = root() / "inductor"
        tests.mkdir(parents=True, exist_ok=True)
        with _inductor_directory(tests):
            cpu_vec_isa.valid_vec_isa_list()
