# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Captured globals: Python globals that were read while a graph was traced.

Their values are constants in the graph. They belong to no instance and to no source
file. Dynamo guards on them. Guards on globals are dropped here, so the values are
written down instead. They are compared where another instance or process reuses the
graph.
"""

import ast
import importlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

import torch

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_ALIAS = "__import_"


def values(guards: Iterable[Any], scope: Mapping[str, Any]) -> dict[str, str]:
    """The plain values among what Dynamo would guard on.

    Args:
        guards: Dynamo's guard filter entries.
        scope: The globals of the traced function.

    Returns:
        Expression, as Dynamo names it -> value.
    """
    found = {}
    for guard in guards:
        if guard.is_global and guard.has_value and isinstance(guard.value, _PLAIN):
            try:
                value = _look_up(guard.name, scope)
            except (_Unknown, ImportError, OSError):
                continue
            found[guard.name] = repr(value)
    return found


def changed(before: Mapping[str, str], scope: Mapping[str, Any]) -> str | None:
    """The first value that is another now, in words; None if all are the same.

    Raises:
        OSError, ImportError: A module cannot be imported now, which proves nothing.
    """
    for name, value in before.items():
        try:
            now = repr(_look_up(name, scope))
        except _Unknown:
            now = "nothing"
        if now != value:
            return f"{name}: {value} -> {now}"
    return None


def same(before: Mapping[str, str], scope: Mapping[str, Any]) -> bool:
    """Whether all values are known to be the same now."""
    try:
        return changed(before, scope) is None
    except (ImportError, OSError):
        return False


class _Unknown(Exception):
    pass


def _look_up(expression: str, scope: Mapping[str, Any]) -> Any:
    """Attributes and items only: nothing of the expression is executed."""
    try:
        return _value(ast.parse(expression, mode="eval").body, scope)
    except (_Unknown, ImportError, OSError):
        raise
    except Exception as error:
        raise _Unknown(expression) from error


def _value(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    match node:
        case ast.Name("G"):
            return scope
        case ast.Subscript(ast.Name("G"), ast.Constant(str(name))):
            if name in scope:
                return scope[name]
            if name.startswith(_ALIAS):
                return _module(name.removeprefix(_ALIAS).replace("_dot_", "."))
            raise _Unknown(name)
        case ast.Call(ast.Name("__import__"), [ast.Constant(str(name))], []):
            return _module(name)
        case ast.Attribute(of, name):
            return getattr(_value(of, scope), name)
        case ast.Subscript(of, ast.Constant(key)):
            return _value(of, scope)[key]
    raise _Unknown(ast.dump(node))


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _Unknown(name) from error
        raise  # it is there, and needs a module that is not
