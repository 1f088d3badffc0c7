# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The compile cache: one directory per key, and a key that misses nothing.

vLLM's own artifact key is version, qualified name and line number. Ours covers the
structure, the number of the graph among those of its structure, the configuration, the
versions of all that takes part, and (checked on loading) the source of every traced
file. An artifact brings the guards that say which calls it is for.

An entry is a directory that needs nothing else, and that is never changed once it
has its name:

    <Region>-<first 16 digits of the key>/
        artifact        what `torch.compiler` saved
        inductor/       kernels, as Inductor keeps them
        backend/        what vLLM's own backend keeps (compile mode 3)
        factors.json    name -> value; their SHA-256 is the key
        details.json    what the values that are digests were made of
        sources.json    traced module -> SHA-256 of its file
        outside.json    global variable that the graph took for granted -> value
        digests.json    file of the entry -> SHA-256

All but the artifact, the kernels and the backend's files is plain text, and all of
it is checked before any of those three is opened.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import vllm
import vllm.envs as envs
from torch._inductor import config as inductor_config
from torch._inductor import cpu_vec_isa
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.compilation.counter import compilation_counter
from vllm.config import VllmConfig
from vllm.logger import init_logger

import vllm_mmc
from vllm_mmc.compat import inductor_headers
from vllm_mmc.compilation import outside
from vllm_mmc.compilation.structure import differences

logger = init_logger(__name__)

explain: Callable[["Entry", dict[str, Any]], None] | None = None
"""Told of each entry that would be looked for and of the globals of its `forward`,
instead of compiling (`vllm-mmc cache explain`)."""

ARTIFACT = "artifact"
FACTORS = "factors.json"
DETAILS = "details.json"
SOURCES = "sources.json"
OUTSIDE = "outside.json"
DIGESTS = "digests.json"
# What Inductor leaves behind and no artifact needs.
_SCRATCH = ("inductor/locks", "inductor/aotautograd", "inductor/fxgraph")


@dataclass(frozen=True)
class Entry:
    """One compiled function in the cache.

    Attributes:
        name: The region's name.
        factors: Everything the key covers, by name.
        details: Factor whose value is a digest -> what it was made of.
        enabled: False if nothing may be read or written.
    """

    name: str
    factors: Mapping[str, str]
    details: Mapping[str, Mapping[str, str]]
    enabled: bool

    @property
    def directory(self) -> Path:
        """Where it is, or would be."""
        return root() / f"{self.name}-{key_of(self.factors)[:16]}"


def root() -> Path:
    return Path(envs.VLLM_CACHE_ROOT) / "torch_compile_cache" / "vllm_mmc"


def key_of(factors: Mapping[str, str]) -> str:
    """SHA-256 of the factors, in hexadecimal."""
    return sha256(json.dumps(dict(factors), sort_keys=True).encode())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry_for(
    region: str,
    factors: Mapping[str, str],
    details: Mapping[str, Mapping[str, str]],
    vllm_config: VllmConfig,
    *,
    portable: bool,
) -> Entry:
    """The entry of one graph.

    Args:
        region: The region's name.
        factors: What the graph depends on beside the environment, by name.
        details: Factor whose value is a digest -> what it was made of.
        portable: Whether the factors mean the same in every process.
    """
    environment = _environment(vllm_config)
    return Entry(
        # A tag (`set_model_tag`) may be any text; this is the name of a directory.
        re.sub(r"[^\w.]|^\.", "_", region),
        {**environment.factors, **factors},
        {**environment.details, **details},
        portable and not envs.VLLM_DISABLE_COMPILE_CACHE,
    )


def machine_factors() -> dict[str, str]:
    """The factors that an artifact of another machine may differ in."""
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        machine += f", {torch.cuda.get_device_name()} {major}.{minor}"
    return {
        "vllm_mmc": vllm_mmc.__version__,
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine,
    }


def environment_digest(vllm_config: VllmConfig) -> str:
    """Digest of all factors that are not the region's own."""
    return key_of(_environment(vllm_config).factors)


@dataclass(frozen=True)
class _Environment:
    factors: dict[str, str]
    details: dict[str, dict[str, str]]


_environments: dict[int, _Environment] = {}


def _environment(vllm_config: VllmConfig) -> _Environment:
    # Kept for the life of the configuration object: hashing it takes milliseconds,
    # and it must not change between the regions of one encoder.
    found = _environments.get(id(vllm_config))
    if found is None:
        found = _environments[id(vllm_config)] = _make_environment(vllm_config)
        weakref.finalize(vllm_config, _environments.pop, id(vllm_config), None)
    return found


def _make_environment(vllm_config: VllmConfig) -> _Environment:
    config = vllm_config.compilation_config
    variables, whole, *inductor = aot_compile_hash_factors(vllm_config)
    factors = machine_factors() | {
        "mode": str(config.mode),
        "backend": str(config.backend),
        "environment variables": variables,
        "inductor": sha256(repr(inductor).encode()),
        # All of the configuration; the parts follow, to tell which one changed.
        "configuration": whole,
        "additional_config": repr(vllm_config.additional_config),
    }
    details = {
        "environment variables": _plain(envs.compile_factors()),
        "inductor": _plain(inductor_config.save_config_portable()),
    }
    parts = {f.name: getattr(vllm_config, f.name) for f in _fields(vllm_config)}
    if vllm_config.model_config is not None:
        parts["multimodal_config"] = vllm_config.model_config.multimodal_config
    for name, part in parts.items():
        if part is not None and hasattr(part, "compute_hash"):
            factors[name] = str(part.compute_hash())
            fields = {f.name: getattr(part, f.name, None) for f in _fields(part)}
            details[name] = _plain(fields)
    return _Environment(factors, details)


def _fields(config: Any) -> tuple[Any, ...]:
    return dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()


_TOLD = (bool, int, float, str, type(None), list, tuple, dict, Enum, Path, torch.dtype)


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    """Text to tell values apart by, without what might be a secret."""
    return {
        name: repr(value)[:200]
        for name, value in values.items()
        if isinstance(value, _TOLD)
        and not any(word in name.lower() for word in ("token", "key", "secret"))
    }


@functools.cache  # the object must live: its end is the directory's end
def _scratch(process: int) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vllm_mmc-")


@contextlib.contextmanager
def workplace(entry: Entry) -> Generator[Path, None, None]:
    """A private, empty directory to load or compile `entry` in.

    Entries are copied out of the cache before they are opened and into it when they
    are complete: what was checked is what is used, a cache may be read-only, and
    kernels that are written later (by autotuning) have a place.
    """
    place = Path(_scratch(os.getpid()).name) / entry.directory.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    _check_vector_instructions()
    with _inductor_directory(place / "inductor"):
        yield place


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


def load(
    entry: Entry, place: Path, f_globals: dict[str, Any]
) -> Callable[..., Any] | None:
    """The compiled function, or None if there is none that may be used.

    Args:
        place: From `workplace`; left empty if nothing was loaded.
        f_globals: Of the module that defines the region's `forward`.
    """
    directory = entry.directory
    if not entry.enabled or not directory.exists():
        return None
    try:
        shutil.copytree(directory, place, dirs_exist_ok=True)
        if reason := damage(place):
            raise ValueError(reason)
        if changed := changed_sources(place):
            logger.info("%s was compiled from another %s", directory, changed[0])
            loaded = None
        elif switched := outside.changed(outside_of(place), f_globals):
            logger.info("%s was compiled with another %s", directory, switched)
            loaded = None
        else:
            with open(place / ARTIFACT, "rb") as file, inductor_headers.unprepared():
                loaded = torch.compiler.load_compiled_function(
                    file, f_globals=f_globals
                )
    except Exception as error:
        logger.warning(
            "Compiling again: %s cannot be loaded (%s: %s)",
            directory,
            type(error).__name__,
            error,
        )
        loaded = None
    if loaded is None:
        _discard(directory)
        _discard(place)
        place.mkdir()
        return None
    compilation_counter.num_aot_artifacts_loaded += 1
    return loaded


def save(entry: Entry, compiled: Any, place: Path, taken: Mapping[str, str]) -> None:
    """Complete what was compiled in `place` and keep it under the entry's name.

    A failure is a WARNING. If another process was faster, its entry stays.

    Args:
        compiled: What `aot_compile` returned.
        place: From `workplace`.
        taken: What the graph took from outside of its module.
    """
    if not (entry.enabled and hasattr(compiled, "save_compiled_function")):
        return
    unfinished = root() / f".{entry.directory.name}-{os.getpid()}"
    try:
        compiled.save_compiled_function(str(place / ARTIFACT))
        sources = {
            source.module: _text_digest(source.content)
            for source in compiled.source_info().inlined_sources
        }
        for name, content in (
            (FACTORS, entry.factors),
            (DETAILS, entry.details),
            (SOURCES, sources),
            (OUTSIDE, taken),
        ):
            (place / name).write_text(json.dumps(content, indent=1, sort_keys=True))
        digests = digests_of(place)
        (place / DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True))
        root().mkdir(parents=True, exist_ok=True)
        for name in (*digests, DIGESTS):
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place / name, target)
        try:
            unfinished.rename(entry.directory)
        except OSError:
            if damage(entry.directory):
                raise
    except Exception as error:
        logger.warning(
            "%s is compiled but cannot be kept in %s (%s: %s)",
            entry.name,
            root(),
            type(error).__name__,
            error,
        )
        return
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    compilation_counter.num_aot_artifacts_saved += 1


def _discard(directory: Path) -> None:
    """Take away a bad entry; where that is not allowed it stays and is not used."""
    if directory.is_dir() and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            directory.unlink()


def digests_of(directory: Path) -> dict[str, str]:
    """File, relative to `directory` -> SHA-256; the list of digests itself left out."""
    return {
        path.relative_to(directory).as_posix(): sha256(path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name != DIGESTS
        and not any(path.is_relative_to(directory / name) for name in _SCRATCH)
    }


def damage(directory: Path) -> str | None:
    """What is wrong with an entry, in one line; None if it is whole.

    Its key and the SHA-256 of each of its files are computed again. Nothing is
    unpickled.
    """
    try:
        digests = _read(directory / DIGESTS)
        factors = _read(directory / FACTORS)
        for required in (ARTIFACT, FACTORS, SOURCES, OUTSIDE):
            if required not in digests:
                return f"{DIGESTS} does not list {required}"
        for name, digest in digests.items():
            path = directory / name
            if not path.resolve().is_relative_to(directory.resolve()):
                return f"{name} is outside of the entry"
            if sha256(path.read_bytes()) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    if not directory.name.endswith(f"-{key_of(factors)[:16]}"):
        return f"{FACTORS} belongs to another entry"
    return None


def outside_of(directory: Path) -> dict[str, str]:
    """See `vllm_mmc.compilation.outside`."""
    return _read(directory / OUTSIDE)


def changed_sources(directory: Path) -> list[str]:
    """The traced files whose text is not what was traced."""
    return [
        file or module
        for module, digest in _read(directory / SOURCES).items()
        if (file := _file_of(module)) is None or _file_digest(file) != digest
    ]


def why_missed(entry: Entry, scope: Mapping[str, Any]) -> list[str] | None:
    """Which factors of the key changed since the likest entry was made.

    Returns:
        A line for each factor; None if the entry is there and whole.
    """
    if envs.VLLM_DISABLE_COMPILE_CACHE:
        return ["nothing is read or kept: VLLM_DISABLE_COMPILE_CACHE=1"]
    if not entry.enabled:
        return ["nothing is kept: an attribute can be told by its identity only"]
    if entry.directory.exists():
        if reason := damage(entry.directory):
            return [f"damaged: {reason}"]
        if changed := changed_sources(entry.directory):
            return [f"source of {file}: is another now" for file in changed]
        switched = outside.changed(outside_of(entry.directory), scope)
        return None if switched is None else [f"global {switched}"]
    likest: tuple[int, Path, dict[str, str]] | None = None
    for directory in sorted(root().glob(f"{entry.name}-*")):
        with contextlib.suppress(OSError, ValueError):
            factors = _read(directory / FACTORS)
            changes = len(set(factors.items()) ^ set(entry.factors.items()))
            if likest is None or changes < likest[0]:
                likest = changes, directory, factors
    if likest is None:
        return [f"no entry of {entry.name} is kept yet"]
    _, directory, factors = likest
    try:
        details = json.loads((directory / DETAILS).read_text())
    except (OSError, ValueError):
        details = {}
    changed_factors = sorted(
        name
        for name in {*factors, *entry.factors}
        if factors.get(name) != entry.factors.get(name)
    )
    if len(changed_factors) > 1 and "configuration" in changed_factors:
        changed_factors.remove("configuration")  # the parts of it say more
    return [
        line
        for name in changed_factors
        for line in _changes(
            name,
            factors.get(name),
            entry.factors.get(name),
            details.get(name, {}),
            entry.details.get(name, {}),
        )
    ]


def _changes(
    factor: str,
    before: str | None,
    now: str | None,
    details_before: Mapping[str, str],
    details_now: Mapping[str, str],
) -> list[str]:
    if factor == "structure" and details_before:
        described = [
            ast.literal_eval(details["description"])
            for details in (details_before, details_now)
        ]
        return [
            f"structure{path}: {old!r} -> {new!r}"
            for path, old, new in differences(*described)
        ]
    fields = [
        f"{factor}.{name}: {details_before.get(name)} -> {details_now.get(name)}"
        for name in sorted({*details_before, *details_now})
        if details_before.get(name) != details_now.get(name)
    ]
    return fields or [f"{factor}: {before} -> {now}"]


def _read(path: Path) -> dict[str, str]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def _file_of(module: str) -> str | None:
    if (loaded := sys.modules.get(module)) is not None:
        return getattr(loaded, "__file__", None)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _file_digest(file: str) -> str | None:
    try:
        return _text_digest(Path(file).read_text())
    except (OSError, ValueError):
        return None


def _text_digest(text: str) -> str:
    return sha256(text.rstrip().encode())
