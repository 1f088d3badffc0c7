# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A call that a graph is known for does next to nothing around the graph."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import VllmConfig, get_current_vllm_config

from mmc_testing.engine import quick_compile
from vllm_mmc import metrics
from vllm_mmc.compilation import compiler, shared_graph
from vllm_mmc.compilation.arguments import Signature
from vllm_mmc.compilation.attached import attach
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.compilation.region import RegionSpec
from vllm_mmc.settings import Settings

HIDDEN = 8


@pytest.fixture(autouse=True)
def vllm_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmConfig]:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    with quick_compile() as config:
        yield config


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN), requires_grad=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        z = torch.nn.functional.silu(x @ self.weight)
        return z if y is None else z + y


@support_torch_compile(dynamic_arg_dims={"x": 0, "y": 0})
class Decorated(Block):
    forward = Block.forward


def some(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    torch._check(x.shape[0] > 1)


@support_torch_compile(dynamic_arg_dims={"x": 0, "y": 0}, shape_invariants=some)
class WithInvariants(Block):
    forward = Block.forward


def attached() -> nn.Module:
    dims: dict[str, Any] = {"x": {0: None}, "y": {0: None}}
    spec = RegionSpec("Block", dims, {}, is_encoder=True, surveyed=True)
    block = Block()
    attach(block, spec, get_current_vllm_config())
    return block


@pytest.mark.parametrize("make", [Decorated, WithInvariants, attached])
def test_a_known_call_looks_nothing_up(make: Callable[[], nn.Module]) -> None:
    """No signature, setting, lock or structure, and nothing is published."""
    modules = [make() for _ in range(3)]
    for module in modules:
        module(torch.randn(3, HIDDEN))
        module(torch.randn(3, HIDDEN), torch.randn(3, HIDDEN))
    not_wanted = [
        (inspect, "signature"),
        (inspect.Signature, "bind"),
        (Settings, "of"),
        (Settings, "resolve"),
        (compiler, "LOCK"),
        (metrics, "publish"),
        (shared_graph, "structure_of"),
        (shared_graph.SharedGraph, "_call_unknown"),
    ]
    x, y = torch.randn(5, HIDDEN), torch.randn(5, HIDDEN)
    expected = [Block.forward(module, x, y) for module in modules]
    with contextlib.ExitStack() as stack, counters.expect(graphs=0, rescues=0):
        for place, name in not_wanted:
            error = AssertionError(f"{name} is called")
            broken = mock.MagicMock(side_effect=error)
            broken.__enter__.side_effect = error
            stack.enter_context(mock.patch.object(place, name, broken))
        for module, right in zip(modules, expected, strict=True):
            module(x)
            torch.testing.assert_close(module(x, y), right)


def several(self: Any, x: int, /, y: int = 2, *args: int, z: int, w: int = 4) -> None:
    pass


def variadic(self: Any, *args: int, **kwargs: int) -> None:
    pass


def plain(self: Any, x: int, y: Any = object) -> None:
    pass


CALLS: list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]] = [
    (several, (1,), {"z": 3}),
    (several, (1, 5, 6, 7), {"z": 3, "w": 8}),
    (variadic, (), {}),
    (variadic, (1, 2), {"x": 3}),
    (plain, (1,), {}),
    (plain, (), {"y": 2, "x": 1}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS)
def test_arguments_by_name(
    function: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    bound = inspect.signature(function).bind("module", *args, **kwargs)
    bound.apply_defaults()
    found = Signature(function).locals("module", *args, **kwargs)
    assert found == bound.arguments


@pytest.mark.parametrize("args", [(), (1, 2, 3)])
def test_arguments_that_do_not_fit(args: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"^plain\(\) ") as ours:
        Signature(plain).locals("module", *args)
    with pytest.raises(TypeError) as pythons:
        plain("module", *args)
    assert str(ours.value) == str(pythons.value)
