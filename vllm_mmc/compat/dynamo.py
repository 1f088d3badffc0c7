# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Dynamo's internals in the form that `compilation` uses them.

Why: a graph that serves several modules needs the guards of a graph apart from the
    graph, marks without an example size, and settings that have no public form.
Upstream: no folder, it is PyTorch's: torch/_dynamo/aot_compile.py, experimental.
Remove when: `torch.compiler` has a public form of each function below.
Undo: nothing is kept; settings hold inside of `settings()`.
"""

import contextlib
import importlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

import torch

from vllm_mmc.compat import symbols

Check = Callable[[dict[str, Any]], bool]
"""Takes name -> value of the arguments, self included: do all guards hold?"""

_NEEDED = (
    symbols.AOT_COMPILE,
    symbols.AOT_ARTIFACTS,
    symbols.AOT_FUNCTION,
    symbols.AOT_UNCHECKED,
    symbols.GUARD_MANAGER,
    symbols.GUARD_CHECK,
)


def applies() -> str | None:
    """Why no region can be compiled; None if regions can."""
    return symbols.absent(*_NEEDED)


def check_and_run(compiled: Any) -> tuple[Check, Callable[..., Any]]:
    """The guards and the graph of what `aot_compile` returned, apart.

    Raises:
        AbsentSymbolError: PyTorch keeps them in another form.
    """
    for symbol in _NEEDED:
        symbol.need()
    compiled.disable_guard_check()
    return compiled._artifacts.guard_manager.root.check, compiled.fn


def check_of(code: CodeType) -> Check:
    """The guards of the one graph that Dynamo has made of `code`.

    Raises:
        AbsentSymbolError: PyTorch keeps them in another form.
    """
    entries = symbols.CACHE_ENTRIES.need()
    symbols.GUARD_CHECK.need()
    (entry,) = entries(code)
    check: Check = entry.guard_manager.root.check
    return check


def traced_functions(compiled: Any) -> Iterator[str]:
    """The source of each function that was traced for what `aot_compile` returned.

    Nothing, if it cannot be told, or saved.
    """
    if hasattr(compiled, "source_info"):
        for source in compiled.source_info().inlined_sources:
            lines = source.content.splitlines()
            yield "\n".join(lines[source.firstlineno - 1 : source.lastlineno - 1])


@contextlib.contextmanager
def settings(
    *, dynamic_sources: Sequence[str], size_oblivious: bool, assume_32bit_indexing: bool
) -> Generator[None, None, None]:
    """What holds while a region is compiled.

    Args:
        dynamic_sources: Patterns of the whole numbers among the arguments that vary.
        size_oblivious: Do not tell a dimension that has not been seen as 1 from 1.
        assume_32bit_indexing: vLLM's option of this name.

    Raises:
        AbsentSymbolError: PyTorch cannot compile ahead of time.
    """
    symbols.AOT_COMPILE.need()
    wanted = {
        symbols.AOT_COMPILE: True,
        symbols.CPP_GUARDS: False,
        symbols.DYNAMIC_SOURCES: ",".join(dynamic_sources),
        # Dimensions that happen to have equal sizes in the first call must not
        # become one symbol: each other size would be a further graph.
        symbols.DUCK_SHAPE: False,
        symbols.SIZE_OBLIVIOUS: size_oblivious,
        symbols.INDEXING: assume_32bit_indexing,
    }
    with contextlib.ExitStack() as stack:
        for symbol, value in wanted.items():
            if symbol.usable():
                config = importlib.import_module(symbol.path.partition(":")[0])
                stack.enter_context(config.patch({symbol.name: value}))
        yield


def modes_ignored() -> AbstractContextManager[Any]:
    """Check guards without the difference that inference mode makes to a tensor.

    Graphs are compiled under inference mode. Of the dispatch keys of a tensor these
    tell whether that mode was on, which changes no result.
    """
    if not symbols.usable(symbols.EXCLUDED_KEYS, symbols.KEY_SET, symbols.KEYS):
        return contextlib.nullcontext()
    return torch._C._ExcludeDispatchKeyGuard(_mode_keys())


def _mode_keys() -> Any:
    global _MODE_KEYS
    if _MODE_KEYS is None:
        key = torch._C.DispatchKey
        _MODE_KEYS = torch._C.DispatchKeySet(key.ADInplaceOrView)
        for name in ("AutogradCPU", "AutogradCUDA", "AutogradXPU", "AutogradOther"):
            _MODE_KEYS = _MODE_KEYS.add(getattr(key, name))
    return _MODE_KEYS


_MODE_KEYS: Any = None
