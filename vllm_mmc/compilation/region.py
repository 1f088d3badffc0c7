# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What is known of a region before it is compiled."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn as nn

Dims = Mapping[int, str | None]
"""Dimension (negative counts from the end) -> shape id, or None."""
ShapeInvariants = Callable[..., None]


@dataclass(frozen=True)
class RegionSpec:
    """What a decorator was told about a class, or a survey found out.

    Attributes:
        name: The class's name: cache prefix and log tag.
        dynamic_dims: Path of an argument's leaf -> dimensions that vary between calls.
        unbacked_dims: Path -> dimensions to trace without an example size, so that no
            graph is specialised on 0 or 1.
        is_encoder: Part of a multimodal encoder (vLLM's meaning: the compile range
            is open-ended).
        use_aot_compile: Whether graphs are kept in the compile cache.
        shape_invariants: Takes the arguments of `forward` and states with
            `torch._check` what holds of their sizes.
        surveyed: Found by a survey. A dimension that turns out to be constant in a
            graph is then a further graph and no error.
        dynamic_ints: Paths of ints that vary.
        contiguous: Paths of tensors that are copied before the graph if they are not
            contiguous, or do not start where their storage does.
        identity_attrs: Attributes in which instances differ that share a graph, unless
            the graph reads one.
    """

    name: str
    dynamic_dims: Mapping[str, Dims]
    unbacked_dims: Mapping[str, Sequence[int]]
    is_encoder: bool
    shape_invariants: ShapeInvariants | None = field(default=None, repr=False)
    surveyed: bool = False
    use_aot_compile: bool = field(default=True, repr=False)
    dynamic_ints: tuple[str, ...] = ()
    contiguous: tuple[str, ...] = ()
    identity_attrs: tuple[str, ...] = ()

    def forward(self, module: nn.Module) -> types.MethodType:
        """What runs eager. A surveyed module has an attribute of this name."""
        if self.surveyed:
            return types.MethodType(type(module).forward, module)
        return cast("types.MethodType", module.forward)

    def traced(self, module: nn.Module) -> types.MethodType:
        """What is compiled for `module`."""
        if self.shape_invariants is None:
            return self.forward(module)
        return types.MethodType(_invariants_and_forward, module)

    def check_invariants(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ValueError if sizes violate `shape_invariants`."""
        if self.shape_invariants is None:
            return
        try:
            self.shape_invariants(*args, **kwargs)
        except RuntimeError as error:
            bound = inspect.signature(self.shape_invariants).bind(*args, **kwargs)
            sizes = ", ".join(
                f"{name} {list(arg.shape)}"
                for name, arg in bound.arguments.items()
                if isinstance(arg, torch.Tensor)
            )
            raise ValueError(
                f"{self.name}: the sizes of its arguments violate shape_invariants: "
                f"{sizes}"
            ) from error

    @functools.cached_property
    def varying(self) -> Mapping[str, set[int]]:
        """Path -> dimensions that vary between calls."""
        paths = {*self.dynamic_dims, *self.unbacked_dims}
        return {
            path: {*self.dynamic_dims.get(path, ()), *self.unbacked_dims.get(path, ())}
            for path in paths
        }


def _invariants_and_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Read from the class, as the decorator keeps it: what is traced must not depend
    # on this function's closure, which artifacts do not keep.
    self._mmc_shape_invariants(*args, **kwargs)
    return self.forward(*args, **kwargs)
