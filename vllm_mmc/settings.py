# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The settings of this package: from the environment and from vLLM's own options."""

import json
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

SECTION = "vllm_mmc"
"""Our part of `--additional-config`."""

_T = TypeVar("_T")
_S = TypeVar("_S", bound=str)


def _setting(
    default: _T, parse: Callable[[Any], _T], allowed: str, *, process: bool = False
) -> _T:
    """A field.

    Args:
        parse: From the written value; TypeError or ValueError if it is not allowed.
        allowed: The values that are, for messages and for docs/configuration.md.
        process: Decided before vLLM has a configuration.
    """
    metadata = {"parse": parse, "allowed": allowed, "process": process}
    return field(default=default, metadata=metadata)


def _process_switch(default: bool = False) -> bool:
    def parse(value: Any) -> bool:
        if value not in (True, "1", False, "0"):
            raise ValueError
        return value in (True, "1")

    return _setting(default, parse, '"0" or "1"', process=True)


def _one_of(default: _S, *others: _S) -> _S:
    choices = default, *others

    def parse(value: Any) -> _S:
        if value not in choices:
            raise ValueError
        return choices[choices.index(value)]

    return _setting(default, parse, " or ".join(f'"{c}"' for c in choices))


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _size(value: Any) -> int:
    size = _json(value)
    if not _is_size(size):
        raise ValueError
    return int(size)


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError
    return seconds


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = _json(value)
    if not (isinstance(sizes, (list, tuple)) and all(map(_is_size, sizes))):
        raise ValueError
    return tuple(sorted(set(sizes)))


def _ranges(value: Any) -> tuple[tuple[int, int], ...]:
    pairs = sorted((first, last) for first, last in _json(value))
    ends = [end for pair in pairs for end in pair]
    apart = all(a[1] < b[0] for a, b in zip(pairs, pairs[1:], strict=False))
    if not (apart and all(map(_is_size, ends)) and all(a <= b for a, b in pairs)):
        raise ValueError
    return tuple(pairs)


@dataclass(frozen=True)
class Settings:
    """Each field is read from the environment as `VLLM_MMC_<NAME>`.

    All but `disable`, `allow_untested_vllm`, `survey`, `survey_plugins` and
    `finite_check` may also stand in vLLM's `--additional-config
    '{"vllm_mmc": {"<name>": ...}}'`, which then decides.
    """

    disable: bool = _process_switch()
    """Register nothing: every model is vLLM's own."""
    allow_untested_vllm: bool = _process_switch()
    """Register with a vLLM release that this version was not tested with."""
    survey: bool = _process_switch(default=True)
    """Serve the multimodal architectures that have no file in this package, too: their
    encoders are surveyed. "0" leaves them to vLLM's own classes."""
    survey_plugins: bool = _process_switch(default=True)
    """Survey the encoders of multimodal models that other plugins have registered under
    architecture names of their own, too. "0" leaves these models alone."""
    finite_check: bool = _process_switch(default=True)
    """Keep NaN out of the cache that requests share: refuse an item whose features or
    embeddings are NaN, infinite or beyond 2147483648 with status 400, and replace rows
    of embeddings that are not finite by zeros. "0" does neither."""
    on_error: str = _one_of("eager", "raise")
    """What to do with a region that cannot be compiled: run it eager with one
    WARNING, or raise the compiler's error."""
    parity_check: str = _one_of("auto", "off", "first", "all")
    """Compare compiled with eager at the first call: not at all, for the first
    instance of each structure, or for all instances. On a mismatch the structure runs
    eager, with one ERROR. "auto" is "first" for encoders that are surveyed, and "off"
    for those that have a file in this package."""
    compile_ranges: tuple[tuple[int, int], ...] = _setting(
        (),
        _ranges,
        "a list of [first, last] that do not overlap, with 0 < first <= last, for "
        "instance [[1, 1024], [1025, 16384]]",
    )
    """Ranges of packed tokens (first and last included) that get graphs of their
    own. What lies outside of them has the general graph."""
    compile_sizes: tuple[int, ...] = _setting(
        (), _sizes, "a list of whole numbers above 0, for instance [1024, 4096]"
    )
    """Exact numbers of packed tokens that get graphs of their own."""
    max_graphs: int = _setting(8, _size, "a whole number above 0")
    """The most graphs that one structure gets, in each range of sizes. A call that none
    of them is right for then runs eager, with one WARNING."""
    compile_seconds: float = _setting(
        60.0, _seconds, "a number of seconds, 0 for no limit"
    )
    """How long one graph of a surveyed region may take to compile. What takes longer
    runs eager, with one WARNING."""
    measure: Literal["off", "warmup"] = _one_of("off", "warmup")
    """Time each structure compiled and eager at the warm-up, and run it eager if
    compiled takes over 3 % more: "warmup". That is twelve calls of each structure more.
    It has no effect with several ranks."""
    cpu_attention: str = _one_of(
        "auto", "sdpa", "amx", "avx512_bf16", "avx512", "avx2", "portable"
    )
    """Who computes the attention of encoders on CPU: PyTorch ("sdpa") or a path of the
    CPU kernel. "auto" decides by the CPU, the dtype and the length of an item. Others
    are for comparisons; what cannot run on the CPU is an error."""
    log_shapes_interval: float = _setting(
        -1.0, float, "a number of seconds, negative for never"
    )
    """Write the distribution of encoder input sizes to the log every so many seconds.
    `vllm-mmc profile` reads it."""

    @classmethod
    def of(cls, vllm_config: Any) -> "Settings":
        """The settings of an engine, resolved once for it.

        Raises:
            ValueError: As `resolve`.
        """
        found = _of_engine.get(id(vllm_config))
        if found is None:
            found = cls.resolve(vllm_config.additional_config)
            _of_engine[id(vllm_config)] = found
            weakref.finalize(vllm_config, _of_engine.pop, id(vllm_config), None)
        return found

    @classmethod
    def resolve(
        cls,
        additional_config: object = None,
        environ: Mapping[str, str] = os.environ,
    ) -> "Settings":
        """Read the settings.

        Args:
            additional_config: vLLM's `additional_config`; its part "vllm_mmc" comes
                before the environment.

        Raises:
            ValueError: A setting is unknown or has a value that is not allowed; the
                message says which one and what is.
        """
        section: object = {}
        if isinstance(additional_config, Mapping):
            section = additional_config.get(SECTION, {})
        if not isinstance(section, Mapping):
            raise ValueError(f"additional_config.{SECTION} must be a JSON object")
        known = {f.name: f for f in fields(cls) if not f.metadata["process"]}
        if unknown := sorted(set(section) - set(known)):
            raise ValueError(
                f"additional_config.{SECTION}.{unknown[0]} is unknown; there are "
                f"{', '.join(sorted(known))}"
            )
        values = {}
        for f in fields(cls):
            if f.name in section:
                name, value = f"additional_config.{SECTION}.{f.name}", section[f.name]
            elif (name := variable(f.name)) in environ:
                value = environ[name]
            else:
                continue
            try:
                values[f.name] = f.metadata["parse"](value)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{name} must be {f.metadata['allowed']}, "
                    f"not {json.dumps(value, default=str)}"
                ) from None
        return cls(**values)


_of_engine: dict[int, Settings] = {}


def variable(setting: str) -> str:
    return f"VLLM_MMC_{setting.upper()}"


VARIABLES = tuple(variable(f.name) for f in fields(Settings))
