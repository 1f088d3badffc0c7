# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The structure of a region: all that decides its traced graph but tensor values.

Compiled regions run without guards on the module, so nothing at run time protects a
follower from a graph that was traced on another module. This comparison does: two
instances share a compiled function only if their descriptions are equal.

A description is a nested tuple of plain strings and numbers. It is independent of
addresses and hash seeds, so equal modules have equal digests in every process.
"""

import enum
import functools
import hashlib
import inspect
import logging
import sys
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import torch.nn as nn

from vllm_mmc.compat import symbols

IDENTITY_ATTRS = frozenset({"prefix", "layer_name"})
"""Attributes that name a module's place in the model. They differ between layers
that are otherwise equal and are left out; a graph that reads one is never shared
(see `vllm_mmc.compilation.shared_graph`)."""
RANK_ATTRS = frozenset({"tp_rank"})
"""Attributes that name the rank of the process: beside a `tp_size` of 1 there is none.
They differ between processes that hold parts of the same layer and are kept apart from
the description; a graph that reads one is shared by the layers of its rank alone."""

# What nn.Module keeps for training and state dicts, and what the decorators keep.
_BOOKKEEPING = frozenset(
    {
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_backward_pre_hooks",
        "_backward_hooks",
        "_is_full_backward_hook",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
        "_mmc_shared_graph",
        "_mmc_tag",
        "encoder_shapes",
    }
)
_HOOKS = frozenset({"_forward_hooks", "_forward_pre_hooks"})
_PLAIN = (bool, int, str, bytes, complex, type(None), type(Ellipsis))
_TORCH_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)

_OPERATORS = tuple(
    operator
    for symbol in (symbols.OPERATOR, symbols.OPERATOR_PACKET)
    if (operator := symbol.find()) is not None
)
_LRU_CACHE = type(functools.lru_cache(len))

Description = tuple[Any, ...]


@dataclass(frozen=True)
class Structure:
    """The structure of one region instance.

    Attributes:
        digest: SHA-256 of the description, in hexadecimal.
        description: What was compared.
        rank: "path=value" of each attribute that names the rank of the process.
        unportable: Attributes that could be compared by identity only, "path (type)";
            with one, the digest means nothing outside this process.
    """

    digest: str
    description: Description
    rank: tuple[str, ...]
    unportable: tuple[str, ...]

    @property
    def portable(self) -> bool:
        """Whether the digest means the same in every process."""
        return not self.unportable


def structure_of(module: nn.Module, ignored: Collection[str] = ()) -> Structure:
    """Describe `module`: classes, code, parameters, buffers and attributes.

    Args:
        module: A region instance with its weights loaded (loading may replace
            parameters and quantisation state).
        ignored: Further attributes that are left out, as `IDENTITY_ATTRS` are.
    """
    walker = _Walker(frozenset(ignored) | IDENTITY_ATTRS, RANK_ATTRS)
    description = walker.module(module)
    digest = hashlib.sha256(repr(description).encode()).hexdigest()
    return Structure(
        digest,
        description,
        tuple(p.lstrip(".") for p in walker.rank),
        tuple(p.lstrip(".") for p in walker.unportable),
    )


def class_digest(cls: type) -> str:
    """SHA-256 of a class and of the code of its methods, in hexadecimal."""
    return _sha256(repr(_class_description(cls)).encode())


class _Walker:
    def __init__(
        self,
        ignored: frozenset[str] = IDENTITY_ATTRS,
        rank_attrs: frozenset[str] = frozenset(),
    ) -> None:
        self.unportable: list[str] = []
        self.rank: list[str] = []
        self._path: list[str] = []
        self._ignored = ignored
        self._rank_attrs = rank_attrs
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []  # ids stay unique while we walk

    def _first_visit(self, obj: object) -> Description | None:
        """None on the first visit, else a reference: aliasing is structure."""
        index = self._seen.setdefault(id(obj), len(self._seen))
        if index < len(self._alive):
            return ("seen", index)
        self._alive.append(obj)
        return None

    def module(self, module: nn.Module) -> Description:
        if (seen := self._first_visit(module)) is not None:
            return seen
        own = module.__dict__
        tensors = (*module._parameters.items(), *module._buffers.items())
        return (
            "module",
            self._class(type(module)),
            tuple((name, self.at(f".{name}", t)) for name, t in tensors),
            self._attributes(own, skip=_BOOKKEEPING),
            tuple((n, self.at(f".{n}", m)) for n, m in module._modules.items()),
        )

    def _attributes(
        self, attributes: Mapping[str, Any], skip: frozenset[str] = frozenset()
    ) -> Description:
        if attributes.get("tp_size") != 1:
            ranks = {n for n in self._rank_attrs if type(attributes.get(n)) is int}
            for name in sorted(ranks):
                self.rank.append(f"{''.join(self._path)}.{name}={attributes[name]!r}")
            skip |= ranks
        return tuple(
            # Hooks are kept under counters that no two modules share.
            (
                name,
                self.at(f".{name}", list(value.values()) if name in _HOOKS else value),
            )
            for name, value in sorted(attributes.items())
            if name not in skip
            and name not in self._ignored
            and not getattr(type(value), "not_structure", False)
        )

    def at(self, step: str, obj: Any) -> Description:
        """The value one step further down, as it would be written in Python."""
        self._path.append(step)
        try:
            return self.value(obj)
        finally:
            self._path.pop()

    def value(self, obj: Any) -> Description:
        if isinstance(obj, enum.Enum):
            return ("enum", _qualname(type(obj)), obj.name)
        if type(obj) in _PLAIN:
            return (type(obj).__name__, obj)
        if isinstance(obj, float):
            return ("float", repr(obj))
        if isinstance(obj, (*_TORCH_PLAIN, PurePath)):
            return (type(obj).__name__, str(obj))
        if isinstance(obj, (int, str)):  # a subclass
            return ("plain", _qualname(type(obj)), str(obj))
        if isinstance(obj, (types.GenericAlias, types.UnionType)):
            return ("annotation", repr(obj))
        if isinstance(obj, (type, types.BuiltinFunctionType)):
            return ("name", _qualname(obj))
        if isinstance(obj, _OPERATORS):
            return ("op", str(obj))
        if isinstance(obj, types.ModuleType):
            return ("python module", obj.__name__)
        if isinstance(obj, logging.Logger):
            return ("logger", obj.name)
        if _is_vllm_config(obj):
            # The same in every region of an engine, and part of the cache key.
            return ("vllm config", _qualname(type(obj)))
        if isinstance(obj, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._opaque(obj)

        if isinstance(obj, nn.Module):
            return self.module(obj)
        if (seen := self._first_visit(obj)) is not None:
            return seen
        if isinstance(obj, torch.Tensor):
            return self._tensor(obj)
        if isinstance(obj, (np.ndarray, np.generic)):
            return ("numpy", str(obj.dtype), obj.shape, _sha256(obj.tobytes()))
        if (inner := getattr(obj, "_torchdynamo_orig_callable", None)) is not None:
            return ("torch.compile", self.value(inner))  # inlined when traced
        if type(obj) is _LRU_CACHE:
            return ("lru_cache", self.value(obj.__wrapped__))
        if isinstance(obj, types.MethodType):
            function = self.at(".__func__", obj.__func__)
            return ("method", function, self.at(".__self__", obj.__self__))
        if isinstance(obj, types.FunctionType):
            return self._function(obj)
        if isinstance(obj, functools.partial):
            return (
                "partial",
                self.at(".func", obj.func),
                self.at(".args", obj.args),
                self.at(".keywords", obj.keywords),
            )
        if isinstance(obj, Mapping):
            items = tuple(
                (self.value(k), self.at(f"[{_name_of_key(k)}]", v))
                for k, v in obj.items()
            )
            return ("mapping", _qualname(type(obj)), items)
        if isinstance(obj, (list, tuple)):
            return (
                "sequence",
                _qualname(type(obj)),
                tuple(self.at(f"[{i}]", item) for i, item in enumerate(obj)),
            )
        if isinstance(obj, (set, frozenset)):
            items = tuple(sorted((self.value(item) for item in obj), key=repr))
            return ("set", _qualname(type(obj)), items)
        if type(obj).__module__ != "builtins" and (state := _state(obj)) is not None:
            return ("object", self._class(type(obj)), self._attributes(state))
        if (name := _global_name(obj)) is not None:
            return ("global", name)
        return self._opaque(obj)

    def _class(self, cls: type) -> Description:
        description, unportable = _class_description(cls)
        path = "".join(self._path)
        self.unportable += [path + attribute for attribute in unportable]
        return description

    def _tensor(self, t: torch.Tensor) -> Description:
        plain = {
            name: value
            for name, value in getattr(t, "__dict__", {}).items()
            # Dynamo leaves marks on what it has traced.
            if type(value) in _PLAIN and not name.startswith("_dynamo")
        }
        return (
            "tensor",
            _qualname(type(t)),
            tuple(t.shape),
            tuple(t.stride()) if t.layout is torch.strided else str(t.layout),
            str(t.dtype),
            str(t.device),
            self._attributes(plain),
        )

    def _function(self, fn: types.FunctionType) -> Description:
        cells = []
        names = fn.__code__.co_freevars
        for name, cell in zip(names, fn.__closure__ or (), strict=True):
            try:
                cells.append(self.at(f".{name}", cell.cell_contents))
            except ValueError:  # a cell that is still empty
                cells.append(("empty cell",))
        defaults = fn.__defaults__ or ()
        last = fn.__code__.co_varnames[: fn.__code__.co_argcount][-len(defaults) :]
        positional = zip(last, defaults, strict=False)
        return (
            "function",
            _qualname(fn),
            _code_digest(fn.__code__),
            tuple(self._default(fn, n, v) for n, v in positional),
            tuple(
                (name, self._default(fn, name, value))
                for name, value in (fn.__kwdefaults__ or {}).items()
            ),
            tuple(cells),
        )

    def _default(self, fn: types.FunctionType, name: str, value: Any) -> Description:
        if type(value) is object:  # "no argument": the name tells which
            for known_as, known in fn.__globals__.items():
                if known is value:
                    return ("global", known_as)
        return self.at(f".{name}", value)

    def _opaque(self, obj: object) -> Description:
        self.unportable.append(f"{''.join(self._path)} ({_qualname(type(obj))})")
        return ("identity", _qualname(type(obj)), id(obj))


def _qualname(obj: Any) -> str:
    return f"{getattr(obj, '__module__', '')}.{obj.__qualname__}"


def _name_of_key(key: object) -> str:
    return repr(key) if type(key) in _PLAIN else type(key).__name__


def _global_name(obj: object) -> str | None:
    """The name of the global variable that holds `obj` in every process, if one does.

    `pickle` asks the same: a type of one instance returns its name from `__reduce__`.
    """
    try:
        name = obj.__reduce__()
    except Exception:
        return None
    module = getattr(obj, "__module__", None) or type(obj).__module__
    if not (isinstance(name, str) and getattr(sys.modules[module], name, None) is obj):
        return None
    return f"{module}.{name}"


def _is_vllm_config(obj: object) -> bool:
    return type(obj).__module__.startswith("vllm.config.")


def _state(obj: object) -> dict[str, Any] | None:
    """The attributes of a Python object; None if they cannot be seen."""
    state: dict[str, Any] = dict(getattr(obj, "__dict__", {}))
    visible = hasattr(obj, "__dict__")
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            visible = True
            if slot not in ("__dict__", "__weakref__") and hasattr(obj, slot):
                state[slot] = getattr(obj, slot)
    # An extension type can hide state behind an empty __dict__.
    hidden = any(
        not (cls.__flags__ & _HEAPTYPE) and cls is not object
        for cls in type(obj).__mro__
    )
    return state if visible and not hidden else None


_HEAPTYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: defined in Python (or by a modern C API)


@functools.lru_cache(maxsize=4096)
def _class_description(cls: type) -> tuple[Description, tuple[str, ...]]:
    """The class, and the code of every method down to torch's and Python's own."""
    described = []
    unportable: list[str] = []
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins", "abc", "typing"):
            continue
        members = {}
        for name, member in base.__dict__.items():
            if isinstance(member, (staticmethod, classmethod)):
                member = member.__func__
            elif isinstance(member, property):
                member = member.fget
            if inspect.isfunction(member) or isinstance(member, (*_PLAIN, float)):
                members[name] = member
        for name in ("__doc__", "__firstlineno__"):
            members.pop(name, None)
        walker = _Walker()
        described.append((_qualname(base), walker._attributes(members)))
        unportable += walker.unportable
    return (_qualname(cls), _sha256(repr(described).encode())), tuple(unportable)


@functools.lru_cache(maxsize=16384)
def _code_digest(code: types.CodeType) -> str:
    """What `code` does; where it stands in its file does not matter."""
    return _sha256(
        repr(
            (
                code.co_code,
                tuple(_constant(c) for c in code.co_consts),
                code.co_names,
                code.co_varnames,
                code.co_freevars,
                code.co_cellvars,
                code.co_flags,
                code.co_argcount,
                code.co_kwonlyargcount,
            )
        ).encode()
    )


def _constant(const: Any) -> Any:
    if isinstance(const, types.CodeType):
        return _code_digest(const)
    if isinstance(const, tuple):
        return tuple(_constant(c) for c in const)
    if isinstance(const, frozenset):
        return ("frozenset", sorted(repr(_constant(c)) for c in const))
    return (type(const).__name__, repr(const))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
