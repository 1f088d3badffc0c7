# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Trace modules of transformers without the hooks that collect their outputs.

Why: at the first call of a model, transformers 5 puts a hook on each attention and each
    layer. The hook keeps what the module returns if the caller has asked for attention
    weights or hidden states. It asks a context variable for that, which Dynamo cannot
    trace.
Upstream: no folder, it is transformers': transformers/utils/output_capturing.py.
Remove when: the hook is traced without a graph break.
Undo: nothing is kept; the hooks are back at the end of `taken_off()`.

Where the hook has another form, each region with such a hook counts as one that
collects, and a survey leaves it eager.
"""

import inspect
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch.nn as nn

from vllm_mmc.compat import symbols

_MODULE = symbols.ACTIVE_COLLECTOR.path.partition(":")[0]


def applies() -> str | None:
    """Why it does nothing; None if it does what it is for."""
    return symbols.ACTIVE_COLLECTOR.absent()


@contextmanager
def taken_off(region: nn.Module) -> Generator[None, None, None]:
    """Without those hooks below `region`; its own run outside of its `forward`."""
    before = [(hooks, dict(hooks)) for hooks, _, _ in _below(region)]
    for hooks, key, _ in _below(region):
        del hooks[key]
    try:
        yield
    finally:
        for hooks, all_hooks in before:  # in their order
            hooks.clear()
            hooks.update(all_hooks)


def collect(region: nn.Module) -> bool:
    """Whether one of them would now keep something from below `region`."""
    return any(_collects(hook) for _, _, hook in _below(region))


def _collects(hook: Any) -> bool:
    try:
        wanted = symbols.ACTIVE_COLLECTOR.need().get()
        return bool(wanted) and inspect.getclosurevars(hook).nonlocals["key"] in wanted
    except Exception:  # a hook of another form: nobody knows
        return True


def _below(region: nn.Module) -> list[tuple[MutableMapping[int, Any], int, Any]]:
    return [
        (module._forward_hooks, key, hook)
        for module in region.modules()
        if module is not region
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) == _MODULE
    ]
