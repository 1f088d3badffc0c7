# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`support_torch_compile`: vLLM's meaning and errors, one graph per structure."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
import vllm.compilation.decorators as stock
from vllm.compilation.counter import compilation_counter
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context

from mmc_testing.engine import vllm_compile_on_cpu
from mmc_testing.logs import warnings_of
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.compiler import Graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import (
    ignore_torch_compile,
    should_torch_compile_mm_encoder,
    support_torch_compile,
)

HIDDEN = 8


class Stock(nn.Module):
    """A region as vLLM would have it."""

    def __init__(self, scale: float = 1.0, prefix: str = "") -> None:
        super().__init__()
        self.scale = scale
        self.prefix = prefix
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        z = torch.nn.functional.silu(x @ self.weight) * self.scale
        return z if y is None else z + y[:, None].sum()


@support_torch_compile(
    dynamic_arg_dims={"x": 0, "y": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledRegion(Stock):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        z = torch.nn.functional.silu(x @ self.weight) * self.scale
        return z if y is None else z + y[:, None].sum()


@support_torch_compile(
    dynamic_arg_dims={"x": 0}, mark_unbacked_dims={"x": 0}, is_encoder=True
)
class CompiledUnbackedRegion(Stock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ self.weight) * self.scale


@support_torch_compile(dynamic_arg_dims={"x": 0})
class CompiledNameReader(Stock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + len(self.prefix)


RAISE = {"vllm_mmc": {"on_error": "raise"}}


def config(
    additional_config: dict[str, Any] | None = None, **compilation: Any
) -> VllmConfig:
    compilation = {"compile_mm_encoder": True} | compilation
    return VllmConfig(
        compilation_config=CompilationConfig(**compilation),
        additional_config=additional_config or {},
    )


@pytest.fixture
def vllm_config(request: pytest.FixtureRequest) -> Iterator[VllmConfig]:
    """Of compile mode 2; the parameter 3 asks for the mode that CUDA has."""
    made = config()
    with contextlib.ExitStack() as stack:
        if getattr(request, "param", 2) == 3:
            stack.enter_context(vllm_compile_on_cpu(made))
        stack.enter_context(set_current_vllm_config(made))
        yield made


both_modes = pytest.mark.parametrize("vllm_config", [2, 3], indirect=True)


def eager(region: nn.Module, *args: Any) -> torch.Tensor:
    with torch.inference_mode():
        return Stock.forward(region, *args)


def check(region: nn.Module, *args: Any) -> None:
    torch.testing.assert_close(region(*args), eager(region, *args))


# ---------------------------------------------------------------- sharing


@both_modes
def test_followers_reuse_the_graph_with_their_own_weights(
    vllm_config: VllmConfig,
) -> None:
    regions = [CompiledRegion(scale=3.0, prefix=f"blocks.{i}") for i in range(5)]
    with (
        counters.expect(structures=1, followers=4, graphs=1, recompiles=0),
        compilation_counter.expect(num_models_seen=1, num_aot_compiles=1),
    ):
        for size in (4, 9, 2, 31):
            for region in regions:
                check(region, torch.randn(size, HIDDEN))


@both_modes
def test_twins_that_differ_in_an_attribute_never_share(
    vllm_config: VllmConfig,
) -> None:
    with counters.expect(structures=2, followers=0, graphs=2, recompiles=0):
        for region in (CompiledRegion(scale=5.0), CompiledRegion(scale=7.0)):
            check(region, torch.randn(4, HIDDEN))


def test_a_graph_that_reads_its_prefix_is_not_shared(vllm_config: VllmConfig) -> None:
    x = torch.zeros(4, HIDDEN)
    with counters.expect(structures=2, graphs=2, followers=0):
        for name in ("a", "longer"):
            region = CompiledNameReader(prefix=name)
            assert region(x).eq(len(name)).all()


def test_engines_of_equal_configuration_share(vllm_config: VllmConfig) -> None:
    check(CompiledRegion(scale=11.0), torch.randn(4, HIDDEN))
    with (
        set_current_vllm_config(config()),
        counters.expect(structures=0, followers=1, graphs=0),
    ):
        check(CompiledRegion(scale=11.0), torch.randn(4, HIDDEN))


# ---------------------------------------------------------------- call signatures


def test_another_signature_gets_a_graph_of_its_own(vllm_config: VllmConfig) -> None:
    region = CompiledRegion(scale=13.0)
    x = torch.randn(4, HIDDEN)
    with counters.expect(structures=1, graphs=2, recompiles=1):
        for y in (None, torch.randn(3), None, torch.randn(5)):
            check(region, x, y)


def test_keyword_and_positional_arguments(vllm_config: VllmConfig) -> None:
    region = CompiledRegion(scale=17.0)
    x, y = torch.randn(4, HIDDEN), torch.randn(3)
    torch.testing.assert_close(region(x=x, y=y), eager(region, x, y))
    torch.testing.assert_close(region(x, y=y), eager(region, x, y))


@pytest.mark.parametrize("first", [1, 2, 7])
def test_unbacked_dims_take_any_size_after_any_first(
    first: int, vllm_config: VllmConfig
) -> None:
    region = CompiledUnbackedRegion(scale=19.0 + first)
    with counters.expect(graphs=1, recompiles=0):
        for size in (first, 1, 2, 3, 64):
            check(region, torch.randn(size, HIDDEN))


def test_equal_sizes_in_the_first_call_do_not_become_one(
    vllm_config: VllmConfig,
) -> None:
    region = CompiledRegion(scale=23.0)
    with counters.expect(graphs=1):
        for x_size, y_size in ((6, 6), (6, 3), (2, 9)):
            check(region, torch.randn(x_size, HIDDEN), torch.randn(y_size))


def test_the_first_call_may_have_gradients_on(vllm_config: VllmConfig) -> None:
    """As in vLLM's CPU profile run, where stock compiles a graph that then fails."""
    region = CompiledRegion(scale=29.0)
    assert torch.is_grad_enabled() and region.weight.requires_grad
    region(torch.randn(4, HIDDEN))
    with torch.inference_mode():
        check(region, torch.randn(4, HIDDEN))


def test_arguments_are_left_as_they_were(vllm_config: VllmConfig) -> None:
    x = torch.randn(4, HIDDEN)
    before, attributes = x.clone(), dict(x.__dict__)
    CompiledRegion(scale=31.0)(x)
    assert torch.equal(x, before) and x.__dict__ == attributes


# ---------------------------------------------------------------- when to compile


@pytest.mark.parametrize(
    "compilation",
    [
        {"compile_mm_encoder": False},
        {"mode": CompilationMode.NONE},
        {"mode": CompilationMode.STOCK_TORCH_COMPILE},
    ],
)
def test_off(compilation: dict[str, Any]) -> None:
    with (
        set_current_vllm_config(config(**compilation)),
        counters.expect(structures=0, graphs=0),
        compilation_counter.expect(num_models_seen=0),
    ):
        region = CompiledRegion(scale=37.0)
        assert region.do_not_compile
        x = torch.randn(4, HIDDEN)
        assert torch.equal(region(x), eager(region, x))


def test_ignored_subclass(vllm_config: VllmConfig) -> None:
    @ignore_torch_compile
    class Ignored(CompiledRegion):
        pass

    @support_torch_compile(dynamic_arg_dims={"x": 0})
    class CompiledAgain(Ignored):
        pass

    assert Ignored().do_not_compile
    assert not CompiledAgain().do_not_compile
    assert not CompiledRegion().do_not_compile


def test_skip_compiled(vllm_config: VllmConfig) -> None:
    region = CompiledRegion(scale=41.0)
    with (
        set_forward_context(None, vllm_config, skip_compiled=True),
        counters.expect(structures=0, graphs=0),
    ):
        x = torch.randn(4, HIDDEN)
        assert torch.equal(region(x), eager(region, x))


def test_inlined_in_a_compiled_parent(vllm_config: VllmConfig) -> None:
    region = CompiledRegion(scale=43.0)
    with counters.expect(structures=0, graphs=0):
        parent = torch.compile(lambda x: region(x) + 1, backend="eager", fullgraph=True)
        x = torch.randn(4, HIDDEN)
        torch.testing.assert_close(parent(x), eager(region, x) + 1)


def test_eager_backend() -> None:
    with (
        set_current_vllm_config(config(backend="eager")),
        counters.expect(structures=1, graphs=1, recompiles=0),
    ):
        regions = [CompiledRegion(scale=47.0) for _ in range(2)]
        for size in (4, 7):
            for region in regions:
                check(region, torch.randn(size, HIDDEN))


def test_a_parent_that_vllm_compiles_is_compiled_once_and_by_us(
    vllm_config: VllmConfig,
) -> None:
    @stock.support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
    class Parent(Stock):
        pass

    @support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
    class CompiledChild(Parent):
        def forward(
            self, x: torch.Tensor, y: torch.Tensor | None = None
        ) -> torch.Tensor:
            return super().forward(x, y)

    with compilation_counter.expect(num_models_seen=1), counters.expect(graphs=1):
        check(CompiledChild(scale=53.0), torch.randn(4, HIDDEN))


# ---------------------------------------------------------------- errors


def _no_forward() -> type:
    return type("NoForward", (), {})


def _no_tensors() -> type:
    class NoTensors(nn.Module):
        def forward(self, n: int) -> int:
            return n

    return NoTensors


BAD_USES: list[tuple[Callable[[], type], dict[str, Any], type[Exception], str]] = [
    (_no_forward, {}, TypeError, "should have a forward method"),
    (_no_tensors, {}, ValueError, "No dynamic dimensions found"),
    (lambda: Stock, {"dynamic_arg_dims": {}}, ValueError, "No dynamic dimensions"),
    (lambda: Stock, {"dynamic_arg_dims": {"z": 0}}, ValueError, "Argument z not found"),
]


@pytest.mark.parametrize("decorator", [stock.support_torch_compile, None])
@pytest.mark.parametrize(("make", "kwargs", "error", "message"), BAD_USES)
def test_errors_are_those_of_vllm(
    decorator: Any,
    make: Callable[[], type],
    kwargs: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    cls = make()
    with pytest.raises(error, match=message):
        (decorator or support_torch_compile)(**kwargs)(cls)


def test_a_mark_on_what_is_no_tensor(vllm_config: VllmConfig) -> None:
    region = CompiledRegion(scale=61.0)
    with pytest.raises(ValueError, match=r"Unsupported dynamic dimensions \[0\].*y"):
        region(torch.randn(4, HIDDEN), 3)


def test_a_positional_argument_of_another_type(vllm_config: VllmConfig) -> None:
    scale: Any = "wide"
    with pytest.raises(TypeError, match="positional argument of type 'str'"):
        CompiledRegion(scale)
    assert CompiledRegion(2.0).scale == 2.0


# ---------------------------------------------------------------- shape invariants


def same_size(x: torch.Tensor, y: torch.Tensor) -> None:
    torch._check(x.shape[0] == y.shape[0])


@support_torch_compile(
    dynamic_arg_dims={"x": 0, "y": 0},
    mark_unbacked_dims={"x": 0, "y": 0},
    shape_invariants=same_size,
)
class CompiledPair(Stock):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Without the invariant nothing is known of either size, and this is an error.
        if x.shape[0] == y.shape[0]:
            return x @ self.weight * self.scale + y
        return x


def test_shape_invariants_are_compiled_in() -> None:
    with set_current_vllm_config(config(additional_config=RAISE)):
        pairs = [CompiledPair(scale=67.0) for _ in range(2)]
        with counters.expect(graphs=1, recompiles=0, followers=1):
            for size in (1, 5, 2):
                for pair in pairs:
                    x, y = torch.randn(2, size, HIDDEN)
                    torch.testing.assert_close(pair(x, y), pair.forward(x, y))


@both_modes
def test_a_violated_shape_invariant(vllm_config: VllmConfig) -> None:
    pair = CompiledPair(scale=71.0)
    message = r"CompiledPair.*violate shape_invariants: x \[3, 8\], y \[4, 8\]"
    with pytest.raises(ValueError, match=message), counters.expect(graphs=0):
        pair(torch.randn(3, HIDDEN), torch.randn(4, HIDDEN))
    pair(torch.randn(3, HIDDEN), torch.randn(3, HIDDEN))
    with pytest.raises(ValueError, match=message):
        pair(torch.randn(3, HIDDEN), torch.randn(4, HIDDEN))


# ---------------------------------------------------------------- on_error


@support_torch_compile(dynamic_arg_dims={"x": 0})
class CompiledBroken(Stock):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        torch._dynamo.graph_break()
        return Stock.forward(self, x, y)


@support_torch_compile(dynamic_arg_dims={"x": 0})
class CompiledDataDependent(Stock):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return Stock.forward(self, x, y) if x.sum().item() > -1e9 else x


@support_torch_compile(dynamic_arg_dims={"x": 0})
class CompiledConstant(Stock):
    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        torch._check(x.shape[0] == 4)
        return Stock.forward(self, x, y) + torch.ones(4, 1)


def _no_compiler(broken: pytest.MonkeyPatch) -> None:
    broken.setenv("CXX", "/no/such/g++")
    broken.setattr("torch._inductor.config.cpp.cxx", ("/no/such/g++",))


def _out_of_memory(broken: pytest.MonkeyPatch) -> None:
    def codegen(*_: Any) -> None:
        raise MemoryError("cannot allocate 1 TiB")

    broken.setattr("torch._inductor.graph.GraphLowering.codegen", codegen)


FAILURES = {
    "graph break": (CompiledBroken, None, "make it a custom op with a fake"),
    "data-dependent": (CompiledDataDependent, None, "host metadata"),
    "constant": (CompiledConstant, None, "mark_unbacked_dims"),
    "no compiler": (CompiledRegion, _no_compiler, "install a C.. compiler"),
    "out of memory": (CompiledRegion, _out_of_memory, "cache warm"),
}


@both_modes
@pytest.mark.parametrize("failure", FAILURES)
def test_what_cannot_be_compiled_runs_eager(
    failure: str, vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, break_it, fix = FAILURES[failure]
    with monkeypatch.context() as broken, warnings_of(shared_graph) as logged:
        if break_it is not None:
            break_it(broken)
        leaders = [cls(scale=73.0 + len(failure)) for _ in range(2)]
        with counters.expect(graphs=0, fallbacks=1):
            for region in leaders:
                for size in (4, 6) if cls is not CompiledConstant else (4,):
                    x = torch.randn(size, HIDDEN)
                    assert torch.equal(region(x), region.forward(x))
    assert len(logged) == 1
    assert cls.__name__ in logged[0] and "runs eager" in logged[0]
    assert re.search(fix, logged[0]), logged[0]
    if break_it is None:
        assert re.search(rf"{re.escape(__file__)}:\d+", logged[0]), logged[0]


@both_modes
def test_a_bad_call_leaves_the_good_ones_compiled(vllm_config: VllmConfig) -> None:
    region = CompiledRegion(scale=77.0)
    with counters.expect(graphs=2, fallbacks=1):
        check(region, torch.randn(4, HIDDEN))
        with pytest.raises(RuntimeError):  # eager's own error
            region(torch.randn(4, HIDDEN + 1))
        check(region, torch.randn(5, HIDDEN))
        check(region, torch.randn(5, HIDDEN), torch.randn(3))


def test_on_error_raise() -> None:
    with set_current_vllm_config(config(additional_config=RAISE)):
        region = CompiledBroken(scale=79.0)
        with pytest.raises(torch._dynamo.exc.Unsupported), counters.expect(fallbacks=0):
            region(torch.randn(4, HIDDEN))


def test_a_bad_setting_is_an_error_that_names_it() -> None:
    bad = config(additional_config={"vllm_mmc": {"on_error": "hide"}})
    with (
        set_current_vllm_config(bad),
        pytest.raises(ValueError, match='vllm_mmc.on_error must be "eager" or "raise"'),
    ):
        CompiledRegion()


# ---------------------------------------------------------------- parity_check


def graph(run: Callable[..., Any]) -> tuple[Graph, None]:
    """What compiling gives: a graph for all calls, and nothing to keep."""
    return Graph(lambda f_locals: True, run), None


def wrong_graph(self: Any, leader: nn.Module, *_: Any) -> tuple[Graph, None]:
    """What a graph of another structure would compute."""
    scale = leader.scale * 1.01
    silu = torch.nn.functional.silu
    return graph(lambda module, x, *_: silu(x @ module.weight) * scale)


@pytest.mark.parametrize(("parity_check", "checks"), [("first", 1), ("all", 3)])
def test_a_right_graph_passes(parity_check: str, checks: int) -> None:
    settings = {"vllm_mmc": {"parity_check": parity_check}}
    with set_current_vllm_config(config(additional_config=settings)):
        regions_ = [CompiledRegion(scale=83.0) for _ in range(3)]
        with counters.expect(parity_checks=checks, parity_failures=0, graphs=1):
            for size in (4, 9):
                for region in regions_:
                    check(region, torch.randn(size, HIDDEN))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parity_check", ["first", "all"])
def test_a_wrong_graph_is_found(
    parity_check: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16 one percent is about one rounding: the wrong graph is further off.
    monkeypatch.setattr(shared_graph.SharedGraph, "_compile", wrong_graph)
    settings = {"vllm_mmc": {"parity_check": parity_check}}
    scale = 89.0 if dtype is torch.float32 else 97.0
    if dtype is torch.bfloat16:
        monkeypatch.setattr(
            shared_graph.SharedGraph,
            "_compile",
            lambda *_: graph(lambda module, x, *_: x @ module.weight),
        )
    with (
        set_current_vllm_config(config(additional_config=settings)),
        warnings_of(shared_graph) as logged,
        counters.expect(parity_checks=1, parity_failures=1, followers=2),
    ):
        for region in [CompiledRegion(scale=scale).to(dtype) for _ in range(3)]:
            for size in (4, 9):
                x = torch.randn(size, HIDDEN, dtype=dtype)
                assert torch.equal(region(x), region.forward(x))
    assert len(logged) == 1 and "largest difference" in logged[0]


def test_without_a_check_nothing_is_compared(
    vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative of the tests above: the wrong graph is wrong."""
    monkeypatch.setattr(shared_graph.SharedGraph, "_compile", wrong_graph)
    region, x = CompiledRegion(scale=101.0), torch.randn(4, HIDDEN)
    with counters.expect(parity_checks=0):
        assert not torch.allclose(region(x), region.forward(x))
