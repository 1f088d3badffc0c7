# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The arguments of a region: their leaves, the form a graph takes them in, their kind.

A leaf is named by its path: `x`, `position_embeddings[0]`, `mask_meta.cu_seqlens`.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn as nn
from vllm.sequence import IntermediateTensors

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments, without self, and keyword arguments."""
Children = list[tuple[str, Any]]

PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def children(value: Any) -> Children | None:
    """Path suffix and value of each part of a container; None if `value` is a leaf."""
    if isinstance(value, IntermediateTensors):
        # A decorator names the argument, and means each of its tensors.
        return [("", part) for part in value.tensors.values()]
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        fields = getattr(value, "_fields", None)  # of a named tuple
        names = (
            [f".{f}" for f in fields] if fields else map("[{}]".format, range(2**31))
        )
        return list(zip(names, value, strict=False))
    if isinstance(value, dict):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return [(f".{f.name}", getattr(value, f.name)) for f in fields]
    return None


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of each leaf of `value`, which itself is at `path`."""
    parts = children(value)
    if parts is None:
        yield path, value
        return
    for suffix, part in parts:
        yield from leaves(part, path + suffix)


def map_leaves(function: Callable[[str, Any], Any], value: Any, path: str) -> Any:
    """`value`, rebuilt with `function(path, leaf)` in the place of each leaf."""
    parts = children(value)
    if parts is None:
        return function(path, value)
    new = [map_leaves(function, part, path + suffix) for suffix, part in parts]
    if isinstance(value, IntermediateTensors):
        return IntermediateTensors(dict(zip(value.tensors, new, strict=True)))
    if isinstance(value, dict):
        return dict(zip(value, new, strict=True))
    if isinstance(value, (list, tuple)):
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    names = [field.name for field in dataclasses.fields(value)]
    return dataclasses.replace(value, **dict(zip(names, new, strict=True)))


class Signature:
    """How the arguments of one function are named.

    Args:
        function: A plain function whose first argument is self.
        follow_wrapped: Take the names of the function that a decorator wraps.
    """

    def __init__(
        self, function: Callable[..., Any], *, follow_wrapped: bool = True
    ) -> None:
        self._signature = inspect.signature(function, follow_wrapped=follow_wrapped)
        self.self_name, *names = self._signature.parameters
        self.names = tuple(names)
        """The arguments, without self."""
        self.locals = _locals_of(self._signature, function.__qualname__)
        """Takes the arguments, self included. Returns name -> value, defaults included:
        what Dynamo's guards look at."""

    def given(self, arguments: Arguments) -> dict[str, Any]:
        """Name -> value of the arguments that the caller gave."""
        args, kwargs = arguments
        bound = self._signature.bind(None, *args, **kwargs).arguments
        bound.pop(self.self_name)
        return bound

    def map_leaves(
        self, function: Callable[[str, Any], Any], arguments: Arguments
    ) -> Arguments:
        """The arguments, rebuilt with `function(path, leaf)` for each leaf."""
        bound = self._signature.bind(None, *arguments[0], **arguments[1])
        for name in self.names:
            if name in bound.arguments:
                value = bound.arguments[name]
                bound.arguments[name] = map_leaves(function, value, name)
        return bound.args[1:], bound.kwargs


def _locals_of(
    signature: inspect.Signature, name: str
) -> Callable[..., dict[str, Any]]:
    """A function of this signature that returns its arguments by their names.

    Python itself then binds them, in a fraction of what `inspect.Signature.bind` takes,
    and raises the TypeError of the function where they do not fit.
    """
    parameters = signature.parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    plain = [
        p.replace(annotation=p.empty, default=None if p.name in defaults else p.empty)
        for p in parameters
    ]
    returned = ", ".join(f"{p.name!r}: {p.name}" for p in plain)
    made: dict[str, Any] = {}
    exec(f"def bind{inspect.Signature(plain)}: return {{{returned}}}", made)
    bind: types.FunctionType = made["bind"]
    bind.__qualname__ = name
    by_name = {p.name for p in plain if p.kind is p.KEYWORD_ONLY}
    bind.__defaults__ = tuple(v for n, v in defaults.items() if n not in by_name)
    bind.__kwdefaults__ = {n: v for n, v in defaults.items() if n in by_name}
    return bind


def canonical(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, in the form that graphs are compiled for.

    What has no meaning for the result is taken away, because a graph's guards compare
    it: the strides of dimensions of size 1, the gradient, and, under inference mode,
    whether the tensor was made under inference mode.

    Returns:
        A view of `tensor`; tensor subclasses and sparse tensors are only detached.
    """
    if type(tensor) not in (torch.Tensor, nn.Parameter) or (
        tensor.layout is not torch.strided
    ):
        return tensor.detach()
    strides = tensor.stride()
    if tensor.is_contiguous():
        strides = _contiguous_strides(tensor.shape)
    if not torch.is_inference_mode_enabled():
        return tensor.detach().as_strided(tensor.shape, strides)
    made_here = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return made_here.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, strides
    )


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, at the start of a storage, in order."""
    if tensor.storage_offset():
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.contiguous()


def _contiguous_strides(shape: torch.Size) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def kind(value: Any, path: str, varying: Mapping[str, Any]) -> Any:
    """What is alike in calls that fail to compile for one reason, hashable.

    Args:
        varying: Path of a leaf -> dimensions whose size does not count.
    """
    parts = children(value)
    if parts is not None:
        found = [kind(part, path + suffix, varying) for suffix, part in parts]
        return type(value), tuple(found)
    if isinstance(value, torch.Tensor):
        dims = {d % max(value.ndim, 1) for d in varying.get(path, ())}
        shape = tuple(-1 if d in dims else n for d, n in enumerate(value.shape))
        return value.dtype, value.device, shape
    return (type(value), value) if isinstance(value, PLAIN) else type(value)
