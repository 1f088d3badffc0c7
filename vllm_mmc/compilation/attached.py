# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile a module of any class, without changing the class.

The attribute `forward` of the instance takes the place of the method. That holds for
plain modules, for Hugging Face's and for classes that vLLM's decorator wraps; parameter
names, weight loading and forward hooks stay as they are.
"""

from typing import Any

import torch.nn as nn
from torch.compiler import is_compiling
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available

from vllm_mmc.compilation.region import RegionSpec
from vllm_mmc.compilation.shared_graph import SharedGraph, shared_graph

ATTRIBUTE = "forward"


class AttachedRegion:
    """What stands in `forward` of a region instance.

    A deep copy of the module gets one of its own, which shares the graphs.
    """

    not_structure = True

    def __init__(
        self, module: nn.Module, spec: RegionSpec, vllm_config: VllmConfig
    ) -> None:
        self.module = module
        self.spec = spec
        self.vllm_config = vllm_config
        self.shared: SharedGraph | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if is_compiling() or (
            is_forward_context_available() and get_forward_context().skip_compiled
        ):
            return type(module).forward(module, *args, **kwargs)
        if self.shared is None:
            self.shared = shared_graph(module, self.spec, self.vllm_config)
        return self.shared.call(module, args, kwargs, self.vllm_config)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AttachedRegion":
        module = memo.get(id(self.module), self.module)
        return AttachedRegion(module, self.spec, self.vllm_config)

    def __reduce__(self) -> tuple[Any, ...]:
        return AttachedRegion, (self.module, self.spec, self.vllm_config)


def attach(module: nn.Module, spec: RegionSpec, vllm_config: VllmConfig) -> None:
    """Compile `module` from its next call on.

    Args:
        module: Of any class; one that is attached already gets the new `spec`.
        spec: With `surveyed` set.
        vllm_config: The configuration that the module was built with.
    """
    module.__dict__[ATTRIBUTE] = AttachedRegion(module, spec, vllm_config)


def detach(root: nn.Module) -> None:
    """Undo `attach` for `root` and all its submodules."""
    for module in root.modules():
        if isinstance(module.__dict__.get(ATTRIBUTE), AttachedRegion):
            del module.__dict__[ATTRIBUTE]
