# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A graph is used for the calls that it is right for, and for no others.

Each module here needs one graph for some arguments and another graph for others. With
all guards dropped, several of them were silently wrong.
"""

import copy
import pickle
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.engine import quick_compile
from vllm_mmc.compilation import compiler, shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

HIDDEN = 8


@pytest.fixture(autouse=True)
def vllm_config(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[VllmConfig]:
    """Guards are Dynamo's, whatever the backend: most tests take the quickest one."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    with quick_compile(getattr(request, "param", "eager")) as config:
        yield config


inductor = pytest.mark.parametrize("vllm_config", ["inductor"], indirect=True)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN), requires_grad=False)

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ self.weight)


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Branch(Base):
    """A branch on a size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(x)
        return y * 2 if x.shape[0] % 4 == 0 else y


@support_torch_compile(dynamic_arg_dims={"x": [0, 1]})
class Threshold(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(x)
        return y + 1 if x.shape[0] * x.shape[1] > 40 else y


@support_torch_compile(dynamic_arg_dims={"x": 0, "y": 0})
class Alias(Base):
    """Traced with one tensor for two arguments, a graph has one input."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.act(x) + 2 * y


@support_torch_compile(dynamic_arg_dims={"x": 0, "y": 0})
class Equal(Base):
    """Two lengths that are equal in the first call and not later."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores = self.act(x) @ y.T
        if x.shape[0] == y.shape[0]:
            scores = scores + torch.eye(x.shape[0])
        return scores.softmax(-1) @ y


@support_torch_compile(dynamic_arg_dims={"x": [0, 1], "y": [0, 1]})
class Broadcast(Base):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.act(x) * y


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Plain(Base):
    """Ints, flags, strings and containers of them."""

    def forward(
        self, x: torch.Tensor, n: int = 1, how: dict[str, Any] | None = None
    ) -> torch.Tensor:
        y = self.act(x) * n
        return y if how is None else y + len(how["words"]) * how["scale"]


@support_torch_compile(dynamic_arg_dims={"x": 0, "mask": 0})
class Optional(Base):
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.act(x)
        return y if mask is None else y * mask


@support_torch_compile(dynamic_arg_dims={"x": [0, 1]})
class Strided(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x.as_strided(x.shape, x.stride())) + x


def x(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, HIDDEN)


def twice(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor, tensor


# Module -> calls, of which the first few make the graphs that the later ones meet.
CALLS: dict[type[Base], Sequence[tuple[Any, ...]]] = {
    Branch: [(x(5),), (x(8),), (x(3),), (x(12),), (x(4),)],
    Threshold: [(x(3, 9),), (x(8, 8),), (x(2, 3),), (x(41, 2),), (x(2, 41),)],
    Alias: [twice(x(5)), (x(5), x(5)), twice(x(9)), (x(9), x(9))],
    Equal: [(x(5), x(5)), (x(8), x(9)), (x(3), x(3)), (x(12), x(3))],
    Broadcast: [(x(3, 9), x(1, 9)), (x(3, 9), x(3, 9)), (x(4, 5), x(4, 5))],
    Plain: [
        (x(5),),
        (x(5), 2),
        (x(5), 3),
        (x(4), 1, {"words": ["a"], "scale": 2.0}),
        (x(4), 1, {"words": ["a", "b"], "scale": 2.0}),
        (x(4), 1, {"words": ["a", "b"], "scale": 3.0}),
        (x(4), True),
    ],
    Optional: [(x(5),), (x(5), x(5)), (x(4), None), (x(3).double(),)],
    Strided: [
        (x(5, 7),),
        (x(9, 3).transpose(0, 1),),
        (torch.randn(4, 16, 2 * HIDDEN)[:, ::2, ::2],),
        (x(1, HIDDEN).expand(5, HIDDEN, HIDDEN),),
        (x(6, 9)[1:4],),
    ],
}


def run(cls: type[Base], calls: Sequence[tuple[Any, ...]]) -> None:
    module = cls()
    for call in calls:
        if any(isinstance(a, torch.Tensor) and a.dtype is torch.double for a in call):
            module = copy.deepcopy(module).double()
        torch.testing.assert_close(module(*call), module.forward(*call))


@pytest.mark.parametrize("cls", CALLS)
def test_a_call_that_no_graph_is_for_gets_another(cls: type[Base]) -> None:
    with counters.expect(fallbacks=0, rescues=0):
        run(cls, CALLS[cls])


@pytest.mark.parametrize("cls", CALLS)
def test_known_calls_compile_nothing(cls: type[Base]) -> None:
    run(cls, CALLS[cls])
    with counters.expect(graphs=0, fallbacks=0):
        run(cls, CALLS[cls])


@pytest.mark.parametrize(
    ("cls", "dropped"),
    [
        (Branch, "SHAPE_ENV"),
        (Threshold, "SHAPE_ENV"),
        (Alias, "DUPLICATE_INPUT"),
        (Equal, "SHAPE_ENV"),
        (Broadcast, "TENSOR_MATCH"),
        (Plain, "EQUALS_MATCH"),
        (Optional, "NONE_MATCH"),
        (Strided, "TENSOR_MATCH"),
    ],
)
def test_without_a_guard_it_is_wrong(cls: type[Base], dropped: str) -> None:
    """The negative of the tests above, for each type of guard that is kept."""
    is_kept = compiler._is_kept

    def all_but_one(guard: Any, names: Sequence[str]) -> bool:
        types = {guard.guard_type, *guard.derived_guard_types}
        return dropped not in types and is_kept(guard, names)

    before = counters.rescues
    with mock.patch.object(compiler, "_is_kept", all_but_one):
        try:
            run(cls, CALLS[cls])
        except AssertionError:
            return
    assert counters.rescues > before, f"{dropped} has not been missed"


@inductor
@pytest.mark.parametrize("cls", [Branch, Alias, Optional])
def test_guards_are_kept_in_the_cache(cls: type[Base]) -> None:
    """Loaded, a graph refuses the same calls."""
    run(cls, CALLS[cls][:1])
    shared_graph._structures.clear()
    with counters.expect(graphs=1, artifact_loads=1, fallbacks=0, rescues=0):
        run(cls, CALLS[cls][1:2])
        run(cls, CALLS[cls][:2])
    shared_graph._structures.clear()
    with counters.expect(graphs=0, artifact_loads=2):
        run(cls, CALLS[cls][:2])


@inductor
def test_tensors_of_both_modes_and_their_strides_share_a_graph() -> None:
    """What has no meaning for the result makes no further graph."""
    with torch.inference_mode(False):
        normal = x(4)
        trained = x(5).requires_grad_()
    branch, one = Threshold(), x(9, 1).transpose(0, 1).contiguous()
    with counters.expect(graphs=1):
        for given in (x(3, 2), normal[None, :2].expand(1, 2, HIDDEN), one):
            if given.shape[0] > 1:
                torch.testing.assert_close(branch(given), branch.forward(given))
    optional = Optional()
    with counters.expect(graphs=1):
        for given in (x(3), normal, trained):
            torch.testing.assert_close(optional(given), optional.forward(given))
        with torch.inference_mode(False), torch.no_grad():
            torch.testing.assert_close(optional(normal), optional.forward(normal))


def test_the_number_of_graphs_is_bounded() -> None:
    config = VllmConfig(
        compilation_config=CompilationConfig(compile_mm_encoder=True),
        additional_config={"vllm_mmc": {"max_graphs": 2}},
    )
    config.compilation_config.backend = "eager"
    with set_current_vllm_config(config), counters.expect(graphs=2, fallbacks=0):
        plain = Plain()
        for n in (2, 3, 4, 5, 2):
            given = x(n)
            torch.testing.assert_close(plain(given, n), plain.forward(given, n))
    (structure,) = shared_graph.structures()
    assert structure.failure is not None and "max_graphs" in structure.failure


def test_a_graph_that_raises_where_eager_does_not_is_not_used_again() -> None:
    def broken(*_: Any) -> Any:
        def run(*_: Any) -> Any:
            raise AssertionError("expected stride 1, got 300")

        return compiler.Graph(lambda f_locals: True, run), None

    with (
        mock.patch.object(shared_graph.SharedGraph, "_compile", broken),
        counters.expect(rescues=1, graphs=1),
    ):
        optional = Optional()
        for size in (4, 5):
            given = x(size)
            assert torch.equal(optional(given), optional.forward(given))


def test_a_graph_that_raises_when_it_is_compared_is_not_used_again(
    vllm_config: VllmConfig,
) -> None:
    vllm_config.additional_config = {"vllm_mmc": {"parity_check": "first"}}

    def broken(*_: Any) -> Any:
        def run(*_: Any) -> Any:
            raise AssertionError("expected stride 1, got 300")

        return compiler.Graph(lambda f_locals: True, run), None

    with (
        mock.patch.object(shared_graph.SharedGraph, "_compile", broken),
        counters.expect(rescues=1, parity_failures=0),
    ):
        optional, given = Optional(), x(4)
        assert torch.equal(optional(given), optional.forward(given))


def test_an_error_of_the_caller_leaves_the_graph() -> None:
    equal = Alias()
    with counters.expect(graphs=1, rescues=0):
        equal(x(4), x(4))
        with pytest.raises(RuntimeError):
            equal(x(4), x(5))
        equal(x(6), x(6))


@inductor
def test_copies_work() -> None:
    """`copy.deepcopy` and `pickle` of a module that has been called."""
    optional, given = Optional(), x(4)
    expected = optional(given)
    for made in (copy.deepcopy(optional), pickle.loads(pickle.dumps(optional))):
        with counters.expect(graphs=0):
            torch.testing.assert_close(made(given), expected)


@inductor
def test_first_calls_from_several_threads() -> None:
    """Compiling changes the environment and configurations of the whole process."""
    modules = [cls() for cls in (Branch, Optional, Plain, Threshold) for _ in range(2)]
    failures: list[Any] = []
    barrier = threading.Barrier(len(modules))

    def call(module: Base) -> None:
        given = x(5, 2) if isinstance(module, Threshold) else x(5)
        barrier.wait()
        with torch.inference_mode():
            try:
                torch.testing.assert_close(module(given), module.forward(given))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=call, args=(m,)) for m in modules]
    with counters.expect(structures=4, followers=4, graphs=4, fallbacks=0):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
