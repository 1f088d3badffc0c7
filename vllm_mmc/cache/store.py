# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Load a graph from the cache, or make it and keep it there: one call.

An entry is taken away only if it is proven to be of no use: it is damaged, or a traced
file or a captured global is another now. Whatever else goes wrong when it is loaded (a
full disk, a directory that no library may be loaded from, an import that fails) says
nothing about the entry: it stays, and the graph is made for this process alone.
"""

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import vllm.envs as envs
from vllm.compilation.counter import compilation_counter
from vllm.logger import init_logger

from vllm_mmc.cache import entry as entries
from vllm_mmc.cache.entry import (
    ARTIFACT,
    CAPTURED_GLOBALS,
    DETAILS,
    DIGESTS,
    FACTORS,
    SOURCES,
    Entry,
    captured_globals_of,
    changed_sources,
    digests_of,
    text_digest,
)
from vllm_mmc.cache.key import root
from vllm_mmc.cache.turn import turn
from vllm_mmc.cache.work_directory import work_directory
from vllm_mmc.compat import inductor_headers

logger = init_logger(__name__)

Changed = Callable[[Mapping[str, str]], str | None]
"""Takes captured globals, name -> value, and tells the first one that has another value
now, in words; None if all are the same."""


@dataclass(frozen=True)
class Made:
    """What was compiled because the cache does not have it.

    Attributes:
        value: For the caller, who gets it back.
        saveable: What `aot_compile` returned.
        captured_globals: Global variable that the graph took for granted -> value.
        of_rank: Whether the graph is for this rank alone.
        unkept: Why the cache does not keep it; None if it does, or if the user has
            switched the cache off.
    """

    value: Any
    saveable: Any
    captured_globals: Mapping[str, str]
    of_rank: bool = False
    unkept: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What came from the cache.

    Attributes:
        function: The compiled function.
        captured_globals: Global variable that the graph took for granted -> value.
        seconds: What loading it took.
    """

    function: Callable[..., Any]
    captured_globals: Mapping[str, str]
    seconds: float


class LookupsOnlyExplained(Exception):
    """Nothing is loaded or made inside of `explain_lookups`."""


_on_lookup: Callable[[Entry, Changed], None] | None = None


@contextlib.contextmanager
def explain_lookups(
    on_lookup: Callable[[Entry, Changed], None],
) -> Generator[None, None, None]:
    """Call `on_lookup` with every entry that is looked for, instead of making any."""
    global _on_lookup
    before, _on_lookup = _on_lookup, on_lookup
    try:
        yield
    finally:
        _on_lookup = before


def load_or_make(
    entry: Entry,
    scope: dict[str, Any],
    make: Callable[[float], Made],
    *,
    changed: Changed,
    working_in: Callable[[Path], AbstractContextManager[None]],
    takes_turns: bool = True,
) -> Loaded | Made:
    """The graph of `entry`: from the cache, or what `make` returns, which is kept.

    If it is not kept, every start compiles it: one WARNING, and `unkept` says why.

    One call at a time: the environment of the process says where Inductor works.

    Args:
        scope: The globals of the module that defines the region's `forward`.
        make: Compiles. Takes the seconds that were spent on looking in the cache.
        changed: Checks the captured globals of an entry.
        working_in: Makes the context to load or make in; takes the private directory.
        takes_turns: Whether to wait for a process that makes the same entry. `make`
            must then not wait for other processes.

    Raises:
        LookupsOnlyExplained: Called inside of `explain_lookups`.
        Exception: What `make` raises.
        OSError: There is no directory to work in.
    """
    if _on_lookup is not None:
        _on_lookup(entry.kept, changed)
        raise LookupsOnlyExplained
    with (
        work_directory(entry.directory.name) as work_dir,
        working_in(work_dir),
        contextlib.ExitStack() as stack,
    ):
        start = time.perf_counter()
        loaded, keeps = _load(entry.kept, work_dir, scope, changed)
        seconds = time.perf_counter() - start
        if takes_turns and entry.enabled and loaded is None and not keeps:
            stack.enter_context(turn(entry.directory))
            start = time.perf_counter()
            loaded, keeps = _load(entry.kept, work_dir, scope, changed)
            seconds += time.perf_counter() - start
        if loaded is not None:
            return Loaded(loaded, captured_globals_of(work_dir), seconds)
        try:
            made = make(seconds)
        except Exception as error:
            error.add_note(f"Its kernels are in {work_dir}.")
            raise
        if keeps or not entry.wanted or envs.VLLM_DISABLE_COMPILE_CACHE:
            return made
        target = entry.of_rank if made.of_rank else entry
        unkept = made.unkept or entry.unportable or _save(target, made, work_dir)
        if unkept is not None:
            logger.warning_once(
                "%s is compiled but cannot be kept in %s, so every start compiles it: "
                "%s.",
                entry.name,
                root(),
                unkept,
            )
        return replace(made, unkept=unkept)


class _OfNoUse(Exception):
    """An entry is damaged."""


class _Outdated(Exception):
    """An entry was made from something that is another now."""


def _load(
    entry: Entry, work_dir: Path, scope: dict[str, Any], changed: Changed
) -> tuple[Callable[..., Any] | None, bool]:
    """The compiled function if there is one; and whether the cache keeps its entry.

    `work_dir` is left empty if nothing was loaded.
    """
    directory = entry.directory
    if not entry.enabled or not os.path.exists(directory):
        return None, False
    try:
        function = _open(directory, work_dir, scope, changed)
    except _Outdated as reason:
        logger.info("%s was compiled with another %s", directory, reason)
        keeps = False
    except _OfNoUse as reason:
        logger.warning(
            "Compiling again: %s cannot be loaded, it is damaged (%s)",
            directory,
            reason,
        )
        keeps = False
    except Exception as error:
        logger.warning(
            "Compiling for this process alone: %s cannot be loaded by way of %s, and "
            "stays in the cache (%s: %s)",
            directory,
            work_dir,
            type(error).__name__,
            error,
        )
        keeps = True
    else:
        compilation_counter.num_aot_artifacts_loaded += 1
        return function, True
    if not keeps:
        _discard(directory)
    _discard(work_dir)
    work_dir.mkdir()
    return None, keeps


def _open(
    directory: Path, work_dir: Path, scope: dict[str, Any], changed: Changed
) -> Callable[..., Any]:
    try:
        shutil.copytree(directory, work_dir, dirs_exist_ok=True)
        damage = entries.damage(work_dir, directory.name)
    except OSError:
        if damage := entries.damage(directory):
            raise _OfNoUse(damage) from None
        raise
    if damage:
        if reason := entries.damage(directory):
            raise _OfNoUse(reason)
        raise OSError(f"the copy is not what was copied: {damage}")
    if sources := changed_sources(work_dir):
        raise _Outdated(sources[0])
    if switched := changed(captured_globals_of(work_dir)):
        raise _Outdated(switched)
    with open(work_dir / ARTIFACT, "rb") as file, inductor_headers.unprepared():
        return torch.compiler.load_compiled_function(file, f_globals=scope)


def _save(entry: Entry, made: Made, work_dir: Path) -> str | None:
    """Complete what was compiled in `work_dir` and keep it under the entry's name.

    If another process was faster, its entry stays.

    Returns:
        Why it is not kept; None if it is.
    """
    compiled = made.saveable
    if not hasattr(compiled, "save_compiled_function"):
        return "this backend makes nothing that can be saved"
    try:
        compiled.save_compiled_function(str(work_dir / ARTIFACT))
        sources = {
            source.module: text_digest(source.content)
            for source in compiled.source_info().inlined_sources
        }
        _put(entry, work_dir, sources, made.captured_globals)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    compilation_counter.num_aot_artifacts_saved += 1
    return None


def save_json(entry: Entry, value: Any) -> None:
    """Keep a value that JSON can hold under the entry's name, for `load_json`.

    Raises:
        OSError: The cache cannot be written.
    """
    if entry.enabled:
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / ARTIFACT).write_text(json.dumps(value, indent=1))
            _put(entry, Path(directory), {}, {})


def load_json(entry: Entry) -> Any:
    """What `save_json` has kept; None if there is nothing.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    if not entry.enabled or not entry.directory.exists():
        return None
    if (reason := entries.damage(entry.directory)) is not None:
        raise ValueError(reason)
    return json.loads((entry.directory / ARTIFACT).read_text())


def _put(
    entry: Entry,
    work_dir: Path,
    sources: Mapping[str, str],
    captured_globals: Mapping[str, str],
) -> None:
    """Complete `work_dir` and copy it to the entry's directory."""
    unfinished = root() / f".{entry.directory.name}-{uuid.uuid4().hex[:12]}"
    try:
        for name, content in (
            (FACTORS, entry.factors),
            (DETAILS, entry.details),
            (SOURCES, sources),
            (CAPTURED_GLOBALS, captured_globals),
        ):
            (work_dir / name).write_text(json.dumps(content, indent=1, sort_keys=True))
        digests = digests_of(work_dir)
        (work_dir / DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True))
        root().mkdir(parents=True, exist_ok=True)
        for name in (*digests, DIGESTS):
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(work_dir / name, target)
        try:
            unfinished.rename(entry.directory)
        except OSError:
            if entries.damage(entry.directory):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _discard(directory: Path) -> None:
    """Take it away; where that is not allowed it stays and is not used."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            directory.unlink()
