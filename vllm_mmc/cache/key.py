# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The key of an entry: all that decides a graph beside what the region brings.

vLLM's own artifact key is version, qualified name and line number. Ours covers the
structure, the number of the graph among those of its structure, the configuration, the
versions of all that takes part, and (checked on loading) the source of every traced
file. An artifact brings the guards that say which calls it is for.
"""

import dataclasses
import functools
import hashlib
import json
import platform
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import vllm
import vllm.envs as envs
from torch.cpu import get_capabilities
from vllm.compilation.compiler_interface import get_inductor_factors
from vllm.config import VllmConfig

import vllm_mmc
from vllm_mmc.compat import symbols


def root() -> Path:
    """The directory of the cache."""
    return Path(envs.VLLM_CACHE_ROOT).absolute() / "torch_compile_cache" / "vllm_mmc"


def key_of(factors: Mapping[str, str]) -> str:
    """SHA-256 of the factors, in hexadecimal."""
    return sha256(json.dumps(dict(factors), sort_keys=True).encode())


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


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
        "instructions": " ".join(sorted(instructions())),
    }


_UNLISTED = frozenset(
    {"3dnowprefetch", "apx", "cx16", "gfni", "lahf_lm", "lrcpc", "movbe", "tbm", "xop"}
)
"""Instructions that compilers choose and `get_capabilities` does not list, as
/proc/cpuinfo names them."""


def instructions() -> set[str]:
    """The instructions that a kernel which is compiled here may hold, by name.

    Inductor compiles with -march=native, which means all that this CPU has. The user
    can bound it: TORCHINDUCTOR_CPP_MARCH names the CPU for the compiler, but Inductor
    adds instructions to it that it finds here, of AVX-512 and AMX, unless
    ATEN_CPU_CAPABILITY is "avx2" or "default".
    """
    cpp = symbols.CPP_SETTINGS.find()
    bounded = torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")
    bounded &= platform.machine() == "x86_64"
    if bounded and cpp is not None and cpp.march and cpp.simdlen is None:
        return {f"-march={cpp.march}"}
    known = get_capabilities()
    lengths = {f"{n}={v}" for n, v in known.items() if n.endswith("_max_length")}
    return {n for n, v in known.items() if v is True} | lengths | _unlisted()


@functools.cache
def _unlisted() -> frozenset[str]:
    try:
        return _UNLISTED.intersection(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def environment_digest(vllm_config: VllmConfig) -> str:
    """Digest of all factors that are not the region's own."""
    return key_of(environment_of(vllm_config).factors)


@dataclass(frozen=True)
class Environment:
    """All factors that are not the region's own.

    Attributes:
        factors: Name -> value.
        details: Factor whose value is a digest -> what it was made of.
        doubt: Why nothing can be kept under a key with these factors; None if it can.
    """

    factors: dict[str, str]
    details: dict[str, dict[str, str]]
    doubt: str | None = None


_environments: dict[int, Environment] = {}


def environment_of(vllm_config: VllmConfig) -> Environment:
    """What the process, the machine and the configuration add to a key."""
    # Kept for the life of the configuration object: hashing it takes milliseconds,
    # and it must not change between the regions of one encoder.
    found = _environments.get(id(vllm_config))
    if found is None:
        found = _environments[id(vllm_config)] = _make_environment(vllm_config)
        weakref.finalize(vllm_config, _environments.pop, id(vllm_config), None)
    return found


def _make_environment(vllm_config: VllmConfig) -> Environment:
    config = vllm_config.compilation_config
    if (hash_factors := symbols.HASH_FACTORS.find()) is not None:
        variables, whole, *_ = hash_factors(vllm_config)
    else:  # enough to tell engines of this process apart
        variables, whole = repr(envs.compile_factors()), vllm_config.compute_hash()
    factors = machine_factors() | {
        "mode": str(config.mode),
        "backend": str(config.backend),
        "environment variables": variables,
        "inductor": sha256(repr(get_inductor_factors()).encode()),
        # All of the configuration; the parts follow, to tell which one changed.
        "configuration": whole,
        "additional_config": repr(vllm_config.additional_config),
    }
    details = {
        "environment variables": _plain(envs.compile_factors()),
        "instructions": dict.fromkeys(instructions(), "yes"),
    }
    if (inductor_settings := symbols.INDUCTOR_SETTINGS.find()) is not None:
        details["inductor"] = _plain(inductor_settings())
    parts = {f.name: getattr(vllm_config, f.name) for f in _fields(vllm_config)}
    if vllm_config.model_config is not None:
        parts["multimodal_config"] = vllm_config.model_config.multimodal_config
    for name, part in parts.items():
        if part is not None and hasattr(part, "compute_hash"):
            factors[name] = str(part.compute_hash())
            fields = {f.name: getattr(part, f.name, None) for f in _fields(part)}
            details[name] = _plain(fields)
    return Environment(factors, details, symbols.HASH_FACTORS.absent())


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
