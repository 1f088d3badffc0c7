# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Why the cache has no entry for a graph, in words."""

import ast
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import vllm.envs as envs

from vllm_mmc.cache import entry as entries
from vllm_mmc.cache.entry import DETAILS, FACTORS, Entry, read
from vllm_mmc.cache.key import root
from vllm_mmc.cache.store import Changed


def why_missed(entry: Entry, changed: Changed) -> list[str] | None:
    """Which factors of the key changed since the likest entry was made.

    Args:
        changed: Checks the captured globals of an entry.

    Returns:
        A line for each factor; None if the entry is there and whole.
    """
    if envs.VLLM_DISABLE_COMPILE_CACHE:
        return ["nothing is read or kept: VLLM_DISABLE_COMPILE_CACHE=1"]
    if not entry.wanted:
        return ["nothing is kept: use_aot_compile=False"]
    if entry.unportable is not None:
        return [f"nothing is kept: {entry.unportable}"]
    if entry.directory.exists():
        try:
            return _why_unused(entry.directory, changed)
        except (OSError, ImportError) as error:
            return [f"cannot be read: {type(error).__name__}: {error}"]
    likest: tuple[int, Path, dict[str, str]] | None = None
    for directory in sorted(root().glob(f"{entry.name}-*")):
        with contextlib.suppress(OSError, ValueError):
            factors = read(directory / FACTORS)
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


def _why_unused(directory: Path, changed: Changed) -> list[str] | None:
    if reason := entries.damage(directory):
        return [f"damaged: {reason}"]
    if sources := entries.changed_sources(directory):
        return [f"source of {file}: is another now" for file in sources]
    switched = changed(entries.captured_globals_of(directory))
    return None if switched is None else [f"global {switched}"]


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


def differences(
    a: tuple[Any, ...], b: tuple[Any, ...], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value in `a`, value in `b`) for each leaf of nested tuples that
    differs."""
    if not (isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b)):
        if a != b:
            yield path or ".", a, b
        return
    name = a[0] if a and isinstance(a[0], str) and a[0] == b[0] else ""
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        yield from differences(x, y, f"{path}/{name or i}")
