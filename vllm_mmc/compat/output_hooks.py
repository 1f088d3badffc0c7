# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Trace modules of transformers without the hooks that collect their outputs.

At the first call of a model, transformers 5 puts a hook on each attention and each
layer. It keeps what the module returns if the caller has asked for attention weights
or hidden states, and asks a context variable for that, which Dynamo cannot trace.
"""

import inspect
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch.nn as nn

_MODULE = "transformers.utils.output_capturing"


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
    for _, _, hook in _below(region):
        wanted = hook.__globals__["_active_collector"].get()
        if wanted and inspect.getclosurevars(hook).nonlocals["key"] in wanted:
            return True
    return False


def _below(region: nn.Module) -> list[tuple[MutableMapping[int, Any], int, Any]]:
    return [
        (module._forward_hooks, key, hook)
        for module in region.modules()
        if module is not region
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__module__", None) == _MODULE
    ]
