# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`support_torch_compile`: vLLM's meaning and errors, one graph per structure."""

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

from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import (
    adopt,
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


def config(**compilation: Any) -> VllmConfig:
    compilation = {"compile_mm_encoder": True} | compilation
    return VllmConfig(compilation_config=CompilationConfig(**compilation))


@pytest.fixture
def vllm_config() -> Iterator[VllmConfig]:
    made = config()
    with set_current_vllm_config(made):
        yield made


def eager(region: nn.Module, *args: Any) -> torch.Tensor:
    with torch.inference_mode():
        return Stock.forward(region, *args)


def check(region: nn.Module, *args: Any) -> None:
    torch.testing.assert_close(region(*args), eager(region, *args))


# ---------------------------------------------------------------- sharing


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


# ---------------------------------------------------------------- adoption


def test_adoption_changes_classes_and_nothing_else(vllm_config: VllmConfig) -> None:
    root = nn.Sequential(Stock(scale=59.0), nn.ModuleList([Stock(scale=59.0)]))
    parameters = dict(root.named_parameters())
    adopt(root, {Stock: CompiledRegion}, vllm_config)
    assert all(p is parameters[n] for n, p in root.named_parameters())
    assert type(root[0]) is type(root[1][0]) is CompiledRegion
    with counters.expect(structures=1, followers=1, graphs=1):
        for region in (root[0], root[1][0]):
            check(region, torch.randn(4, HIDDEN))


def test_adoption_takes_exact_types_only(vllm_config: VllmConfig) -> None:
    class Variant(Stock):
        pass

    root = nn.Sequential(Variant())
    adopt(root, {Stock: CompiledRegion}, vllm_config)
    assert type(root[0]) is Variant


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
    with pytest.raises(TypeError, match="positional argument of type 'str'"):
        CompiledRegion("wide")
    assert CompiledRegion(2.0).scale == 2.0
