# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What an entry of the cache is, and what can be checked without opening it.

An entry is a directory that needs nothing else, and that is never changed once it
has its name:

    <Region>-<first 16 digits of the key>/
        artifact        what `torch.compiler` saved
        inductor/       kernels, as Inductor keeps them
        backend/        what vLLM's own backend keeps (compile mode 3)
        factors.json    name -> value; their SHA-256 is the key
        details.json    what the values that are digests were made of
        sources.json    traced module -> SHA-256 of its file
        captured_globals.json
                        global that was read while tracing -> value
        digests.json    file of the entry -> SHA-256

All but the artifact, the kernels and the backend's files is plain text, and all of
it is checked before any of those three is opened.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import vllm.envs as envs
from vllm.config import VllmConfig

from vllm_mmc.cache.key import environment_of, key_of, root, sha256

ARTIFACT = "artifact"
FACTORS = "factors.json"
DETAILS = "details.json"
SOURCES = "sources.json"
CAPTURED_GLOBALS = "captured_globals.json"
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
        unportable: Why the factors mean nothing in another process; None if they do.
        wanted: Whether the graph shall be kept.
        rank: What names the rank of this process.
    """

    name: str
    factors: Mapping[str, str]
    details: Mapping[str, Mapping[str, str]]
    unportable: str | None
    wanted: bool
    rank: str = ""

    @property
    def of_rank(self) -> "Entry":
        """The entry of this rank, for a graph that read what names the rank."""
        return replace(self, factors={**self.factors, "rank": self.rank})

    @property
    def kept(self) -> "Entry":
        """The one of both that the cache has; the one of all ranks if it has none."""
        of_rank = self.of_rank
        there = of_rank.directory.exists() and not self.directory.exists()
        return of_rank if there else self

    @property
    def enabled(self) -> bool:
        """False if nothing may be read or written."""
        return (
            self.wanted
            and self.unportable is None
            and not envs.VLLM_DISABLE_COMPILE_CACHE
        )

    @property
    def directory(self) -> Path:
        """Where it is, or would be."""
        return root() / f"{self.name}-{key_of(self.factors)[:16]}"


def entry_for(
    region: str,
    factors: Mapping[str, str],
    details: Mapping[str, Mapping[str, str]],
    vllm_config: VllmConfig,
    *,
    unportable: str | None,
    wanted: bool,
    rank: str = "",
) -> Entry:
    """The entry of one graph.

    Args:
        region: The region's name.
        factors: What the graph depends on beside the environment, by name.
        details: Factor whose value is a digest -> what it was made of.
        unportable: Why the factors mean nothing in another process; None if they do.
        wanted: Whether the graph shall be kept.
        rank: What names the rank of this process.
    """
    environment = environment_of(vllm_config)
    return Entry(
        # A tag (`set_model_tag`) may be any text; this is the name of a directory.
        re.sub(r"[^\w.]|^\.", "_", region),
        {**environment.factors, **factors},
        {**environment.details, **details},
        unportable or environment.doubt,
        wanted,
        rank,
    )


def digests_of(directory: Path) -> dict[str, str]:
    """File, relative to `directory` -> SHA-256; the list of digests itself left out."""
    return {
        path.relative_to(directory).as_posix(): sha256(path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name != DIGESTS
        and not any(path.is_relative_to(directory / name) for name in _SCRATCH)
    }


_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def damage(directory: Path, entry_name: str | None = None) -> str | None:
    """What is wrong with an entry, in one line; None if it is whole.

    Its key and the SHA-256 of each of its files are computed again. Nothing is
    unpickled.

    Args:
        directory: The entry, or a copy.
        entry_name: The name of the entry, if the copy has another.

    Raises:
        OSError: A file is there and cannot be read, which proves nothing.
    """
    try:
        digests = read(directory / DIGESTS)
        factors = read(directory / FACTORS)
        for required in (ARTIFACT, FACTORS, SOURCES, CAPTURED_GLOBALS):
            if required not in digests:
                return f"{DIGESTS} does not list {required}"
        for name, digest in digests.items():
            path = directory / name
            if not path.resolve().is_relative_to(directory.resolve()):
                return f"{name} is outside of the entry"
            if sha256(path.read_bytes()) != digest:
                return f"{name} is not what was written"
    except (*_MISSING, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    if not (entry_name or directory.name).endswith(f"-{key_of(factors)[:16]}"):
        return f"{FACTORS} belongs to another entry"
    return None


def captured_globals_of(directory: Path) -> dict[str, str]:
    """Global variable that the graph took for granted -> its value then."""
    return read(directory / CAPTURED_GLOBALS)


def changed_sources(directory: Path) -> list[str]:
    """The traced files whose text is not what was traced.

    Raises:
        OSError, ImportError: A file cannot be found or read now, for another reason
            than that there is none.
    """
    return [
        file or module
        for module, digest in read(directory / SOURCES).items()
        if (file := _file_of(module)) is None or _file_digest(file) != digest
    ]


def read(path: Path) -> dict[str, str]:
    """Raises ValueError if `path` is not a JSON object."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def text_digest(text: str) -> str:
    """SHA-256 of a source text, in hexadecimal."""
    return sha256(text.rstrip().encode())


def _file_of(module: str) -> str | None:
    if (loaded := sys.modules.get(module)) is not None:
        return getattr(loaded, "__file__", None)
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return None
        raise  # a package of it needs a module that is not there
    except ValueError:
        return None
    return spec.origin if spec else None


def _file_digest(file: str) -> str | None:
    try:
        return text_digest(Path(file).read_text())
    except (*_MISSING, ValueError):
        return None
