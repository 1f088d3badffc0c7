# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The compile cache: one directory per key, and a key that misses nothing.

vLLM's own artifact key is version, qualified name and line number. Ours covers the
structure, the call signature, the configuration, the versions of all that takes
part, and (checked on loading) the source of every traced file.
"""

import contextlib
import hashlib
import inspect
import json
import os
import platform
import shutil
import sys
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
import vllm.envs as envs
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.compilation.counter import compilation_counter
from vllm.config import VllmConfig
from vllm.logger import init_logger

import vllm_mmc
from vllm_mmc.compilation.structure import Structure

if TYPE_CHECKING:
    from vllm_mmc.compilation.regions import RegionSpec

logger = init_logger(__name__)


@dataclass(frozen=True)
class Entry:
    """One compiled function in the cache.

    Attributes:
        factors: Everything the key covers, by name.
        directory: Where the artifact is, or would be.
        enabled: False if nothing may be read or written.
    """

    factors: dict[str, str]
    directory: Path
    enabled: bool

    @property
    def artifact(self) -> Path:
        return self.directory / "artifact"


def root() -> Path:
    return Path(envs.VLLM_CACHE_ROOT) / "torch_compile_cache" / "vllm_mmc"


def entry_for(
    spec: "RegionSpec",
    structure: Structure,
    signature: tuple[Any, ...],
    vllm_config: VllmConfig,
) -> Entry:
    factors = {
        **_environment(vllm_config),
        "region": repr(spec),
        "structure": structure.digest,
        "signature": repr(signature),
    }
    key = hashlib.sha256(json.dumps(factors, sort_keys=True).encode()).hexdigest()
    enabled = structure.portable and not envs.VLLM_DISABLE_COMPILE_CACHE
    return Entry(factors, root() / f"{spec.name}-{key[:16]}", enabled)


def environment_digest(vllm_config: VllmConfig) -> str:
    """Digest of all factors that are not the region's own."""
    return hashlib.sha256(repr(_environment(vllm_config)).encode()).hexdigest()


_environments: dict[int, dict[str, str]] = {}


def _environment(vllm_config: VllmConfig) -> dict[str, str]:
    # Kept for the life of the configuration object: hashing it takes milliseconds,
    # and it must not change between the regions of one encoder.
    found = _environments.get(id(vllm_config))
    if found is None:
        config = vllm_config.compilation_config
        found = {
            "vllm_mmc": vllm_mmc.__version__,
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "mode": str(config.mode),
            "backend": str(config.backend),
            "configuration": repr(aot_compile_hash_factors(vllm_config)),
        }
        _environments[id(vllm_config)] = found
        weakref.finalize(vllm_config, _environments.pop, id(vllm_config), None)
    return found


@contextlib.contextmanager
def inductor_directory() -> Generator[None, None, None]:
    """Keep what Inductor caches by content in one place for all our regions."""
    if envs.VLLM_DISABLE_COMPILE_CACHE:
        yield
        return
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(root() / "inductor")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def load(entry: Entry, f_globals: dict[str, Any]) -> Callable[..., Any] | None:
    """The compiled function, or None if there is none that may be used."""
    if not (entry.enabled and entry.artifact.exists()):
        return None
    try:
        with open(entry.artifact, "rb") as file:
            loaded = torch.compiler.load_compiled_function(file, f_globals=f_globals)
        changed = _changed_sources(loaded.source_info())
        if changed:
            logger.info("%s was compiled from another %s", entry.directory, changed)
            shutil.rmtree(entry.directory, ignore_errors=True)
            return None
        loaded.disable_guard_check()
    except Exception as error:
        logger.warning(
            "Compiling again: %s cannot be loaded (%s: %s)",
            entry.artifact,
            type(error).__name__,
            error,
        )
        shutil.rmtree(entry.directory, ignore_errors=True)
        return None
    compilation_counter.num_aot_artifacts_loaded += 1
    return loaded


def save(entry: Entry, compiled: Any) -> None:
    """Write the artifact and what its key was made of; a failure is a WARNING."""
    if not (entry.enabled and hasattr(compiled, "save_compiled_function")):
        return
    try:
        entry.directory.mkdir(parents=True, exist_ok=True)
        compiled.save_compiled_function(str(entry.artifact))
        (entry.directory / "factors.json").write_text(
            json.dumps(entry.factors, indent=2, sort_keys=True)
        )
    except Exception as error:
        logger.warning(
            "%s was compiled but cannot be kept in %s (%s: %s)",
            entry.factors["region"].partition("'")[2].partition("'")[0],
            entry.directory,
            type(error).__name__,
            error,
        )
        return
    compilation_counter.num_aot_artifacts_saved += 1


def _changed_sources(source_info: Any) -> str | None:
    """The first traced file whose text is not what was traced."""
    for source in source_info.inlined_sources:
        module = sys.modules.get(source.module)
        if module is None:
            return str(source.module)
        file = inspect.getfile(module)
        try:
            text = Path(file).read_text()
        except OSError:
            return file
        if text.rstrip() != source.content.rstrip():
            return file
    return None
