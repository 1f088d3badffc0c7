# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The private directory in which a graph is loaded or compiled.

Kernels are libraries, which are loaded from where they lie: the directory is where the
user lets Inductor work, else beside the cache, else among the temporary files. One
whose file system loads no libraries (noexec) is not used, nor is one whose path the
compiler's command line would cut.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import torch
import vllm.envs as envs
from vllm.logger import init_logger

from vllm_mmc.cache.key import root
from vllm_mmc.compat import symbols

logger = init_logger(__name__)

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
_PREFIX = ".vllm_mmc-work-"
# Seconds from which on a directory that no process holds was left behind.
_ABANDONED = 3600


@contextlib.contextmanager
def work_directory(name: str) -> Generator[Path, None, None]:
    """A private, empty directory to load or compile an entry of this name in.

    Entries are copied out of the cache before they are opened and into it when they
    are complete: what was checked is what is used, a cache may be read-only, and
    kernels that are written later (by autotuning) have a place.

    Raises:
        OSError: There is no directory to work in.
    """
    scratch = _scratch()
    work_dir = scratch / name
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir()
    _check_vector_instructions(scratch)
    with _inductor_directory(work_dir / "inductor"):
        yield work_dir


_made: dict[tuple[int, Path], Path] = {}
"""Process, directory -> the scratch directory of the process below it."""


def _scratch() -> Path:
    """A directory of this process (a forked process has another), removed at its end.

    Raises:
        OSError: It can be made nowhere; says why for each place.
    """
    reasons = []
    for parent in _parents():
        made = _made.get((os.getpid(), parent))
        if made is not None and made.is_dir():
            return made
        try:
            made = _made[os.getpid(), parent] = _make_scratch(parent)
            return made
        except OSError as error:
            reasons.append(f"{parent} ({error.strerror or error})")
            if parent == _chosen_by_user():
                logger.warning_once(
                    "%s: kernels are kept elsewhere (%s).", INDUCTOR, reasons[-1]
                )
    raise OSError(f"no directory to load kernels from: {', '.join(reasons)}")


def _parents() -> Iterator[Path]:
    if (chosen := _chosen_by_user()) is not None:
        yield chosen
    yield root().parent
    yield Path(tempfile.gettempdir())


def _chosen_by_user() -> Path | None:
    """Where the user lets Inductor work.

    None if the variable is not set, or if torch or vLLM has set it: torch to a
    directory among the temporary files, vLLM to one of its own cache.
    """
    if not (value := os.environ.get(INDUCTOR)):
        return None
    path = Path(value).absolute()
    default = path.name.startswith("torchinductor_")
    if default and path.parent == Path(tempfile.gettempdir()):
        return None
    return None if path.is_relative_to(root().parents[1]) else path


def _make_scratch(parent: Path) -> Path:
    if re.search(r"[\s'\"\\]", str(parent)):
        raise OSError("Inductor gives the compiler such a path in pieces")
    parent.mkdir(parents=True, exist_ok=True)
    if os.statvfs(parent).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise OSError("its file system is mounted noexec")
    _remove_abandoned(parent)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(made, os.O_RDONLY)  # until the process ends, however it does
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Does nothing in a process that is forked from this one.
    Finalize(None, shutil.rmtree, (made, True), exitpriority=0)
    return made


def _remove_abandoned(parent: Path) -> None:
    """Remove what processes left that were killed: nobody holds its lock."""
    for found in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - found.stat().st_mtime < _ABANDONED:
                continue
            lock = os.open(found, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _inductor_directory(directory: Path) -> Generator[None, None, None]:
    before = os.environ.get(INDUCTOR)
    os.environ[INDUCTOR] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ[INDUCTOR]
        else:
            os.environ[INDUCTOR] = before


@functools.cache
def _check_vector_instructions(scratch: Path) -> None:
    """Inductor compiles a test for each instruction set, once in every directory.

    The tests are libraries too. Where Inductor cannot load them it compiles for no
    instruction set at all, so they lie where kernels may be.
    """
    if envs.VLLM_DISABLE_COMPILE_CACHE or torch.cuda.is_available():
        return
    find_sets = symbols.INSTRUCTION_SETS.find()
    if find_sets is None:
        return
    if scratch.parent == _chosen_by_user():
        tests = scratch.parent
    elif scratch.parent == root().parent:
        tests = root() / "inductor"
    else:
        tests = scratch / "inductor"
    with contextlib.suppress(OSError):
        tests.mkdir(parents=True, exist_ok=True)
        with _inductor_directory(tests):
            find_sets()
