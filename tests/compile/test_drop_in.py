# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A class written for vLLM's decorator runs unchanged under ours.

Each test runs under both. docs/decorator.md names them, row by row.
"""

from collections.abc import Callable, Iterator
from typing import Any, Optional

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
from vllm.sequence import IntermediateTensors

from vllm_mmc.compilation import decorators as ours
from vllm_mmc.compilation import shared_graph


@pytest.fixture(params=[stock, ours], ids=["stock", "ours"])
def api(request: pytest.FixtureRequest) -> Any:
    return request.param


def config(**compilation: Any) -> VllmConfig:
    # The graphs are run as they were traced: sizes and branches are what is at stake.
    return VllmConfig(
        compilation_config=CompilationConfig(**({"backend": "eager"} | compilation))
    )


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    made = config()
    with set_current_vllm_config(made), torch.no_grad():
        yield made


def check(module: nn.Module, *calls: tuple[Any, ...]) -> None:
    """Right at every call, so no size of the first one is baked in."""
    for args in calls:
        torch.testing.assert_close(module(*args), module.forward(*args))


def tensors(*shape: int) -> IntermediateTensors:
    return IntermediateTensors({"a": torch.randn(shape), "b": torch.randn(shape)})


# ---------------------------------------------------------------- which dims vary


def test_dims_are_inferred_from_annotations(api: Any) -> None:
    @api.support_torch_compile
    class Inferred(nn.Module):
        def forward(
            self,
            x: torch.Tensor,
            y: Optional[torch.Tensor],  # noqa: UP045
            z: torch.FloatTensor | None = None,
            n: int = 2,
        ) -> torch.Tensor:
            return x * x.shape[0] + (0 if y is None else y.sum() * y.shape[0]) * n

    one, other = (torch.randn(4, 2), torch.randn(3)), (torch.randn(5, 2), torch.ones(7))
    check(Inferred(), one, other)


def test_one_dim(api: Any) -> None:
    @api.support_torch_compile(dynamic_arg_dims={"x": 1})
    class OneDim(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.shape[1]

    check(OneDim(), (torch.randn(2, 3),), (torch.randn(2, 5),))


def test_a_list_of_dims(api: Any) -> None:
    @api.support_torch_compile(dynamic_arg_dims={"x": [0, 1]})
    class ListOfDims(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.shape[0] + x.shape[1]

    check(ListOfDims(), (torch.randn(2, 3),), (torch.randn(4, 5),))


def test_negative_dims(api: Any) -> None:
    @api.support_torch_compile(dynamic_arg_dims={"x": -1, "t": -2})
    class NegativeDims(nn.Module):
        def forward(self, x: torch.Tensor, t: IntermediateTensors) -> torch.Tensor:
            return x * x.shape[-1] + t["a"].shape[-2]

    check(
        NegativeDims(),
        (torch.randn(2, 3), tensors(4, 6)),
        (torch.randn(2, 5), tensors(3, 6)),
    )


def test_a_dict_of_shape_ids(api: Any) -> None:
    """Dimensions of one id have one size, which unbacked sizes cannot find out."""

    @api.support_torch_compile(dynamic_arg_dims={"x": {0: "n"}, "y": {0: "n"}})
    class ShapeIds(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    unbacked = config(dynamic_shapes_config={"type": "unbacked"})
    with set_current_vllm_config(unbacked):
        check(
            ShapeIds(),
            (torch.randn(3, 2), torch.randn(3, 2)),
            (torch.randn(5, 2), torch.randn(5, 2)),
        )


def test_intermediate_tensors(api: Any) -> None:
    @api.support_torch_compile
    class Intermediate(nn.Module):
        def forward(
            self, x: torch.Tensor, t: IntermediateTensors | None
        ) -> torch.Tensor:
            if t is None:
                return x * x.shape[0]
            return t["a"] * t["a"].shape[0] + t["b"] * t["b"].shape[0]

    x = torch.randn(4, 2)
    check(Intermediate(), (x, tensors(3, 2)), (x, tensors(6, 2)))
    check(Intermediate(), (x, None), (torch.randn(5, 2), None))


def test_unbacked_dims(api: Any) -> None:
    @api.support_torch_compile(
        dynamic_arg_dims={"x": 0}, mark_unbacked_dims={"x": -2}, is_encoder=True
    )
    class Unbacked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.shape[0]

    check(Unbacked(), (torch.randn(1, 2),), (torch.randn(5, 2),))


def test_an_argument_that_cannot_vary(api: Any) -> None:
    @api.support_torch_compile(dynamic_arg_dims={"n": 0})
    class NoTensor(nn.Module):
        def forward(self, n: int) -> int:
            return n

    with pytest.raises(ValueError, match="Unsupported dynamic dimensions"):
        NoTensor()(3)


# ---------------------------------------------------------------- __init__


def test_init_is_given_what_it_asks_for(api: Any, vllm_config: VllmConfig) -> None:
    @api.support_torch_compile
    class Asks(nn.Module):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
            super().__init__()
            self.seen = vllm_config, prefix

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    @api.support_torch_compile
    class AsksNot(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    other = config()
    make: Callable[..., Any] = Asks  # The decorator gives what is left out.
    assert make(prefix="a.b").seen == (vllm_config, "a.b")
    assert make(vllm_config=other).seen[0] is other
    module = AsksNot(prefix="left out")
    assert module.vllm_config is vllm_config
    assert module.compilation_config is vllm_config.compilation_config
    assert module.do_not_compile is False


def test_decorated_twice(api: Any) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.shape[0]

    once = api.support_torch_compile(Twice)
    assert api.support_torch_compile(once) is once
    with compilation_counter.expect(num_models_seen=1):
        check(once(), (torch.randn(3, 2),), (torch.randn(4, 2),))


def test_set_model_tag(api: Any) -> None:
    set_model_tag = getattr(api, "set_model_tag", ours.set_model_tag)

    @api.support_torch_compile
    class Tagged(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.shape[0]

    with set_model_tag("tower", is_encoder=True):
        module = Tagged()
        with pytest.raises(AssertionError), set_model_tag("tower"):
            pass
    check(module, (torch.randn(3, 2),), (torch.randn(4, 2),))
    if api is ours:
        (structure,) = [s for s in shared_graph.structures() if "Tagged" in s.spec.name]
        assert structure.spec.name == "tower.Tagged"
        assert structure.spec.is_encoder


# ---------------------------------------------------------------- when not to compile


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # True of the graph, not of Python: shows which of the two has run.
        return x + (1 if torch.compiler.is_compiling() else 0)


def compiled(module: nn.Module) -> bool:
    return bool(module(torch.zeros(3)).eq(1).all())


def decorate(api: Any, cls: type, **arguments: Any) -> type:
    return api.support_torch_compile(**{"dynamic_arg_dims": {"x": 0}} | arguments)(cls)


def subclass(cls: type) -> type:
    """With a forward of its own: vLLM keeps graphs by that."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + (1 if torch.compiler.is_compiling() else 0)

    forward.__qualname__ = f"Sub{cls.__name__}.forward"
    return type(f"Sub{cls.__name__}", (cls,), {"forward": forward})


def test_enable_if(api: Any) -> None:
    region = decorate(
        api, subclass(Plain), enable_if=ours.should_torch_compile_mm_encoder
    )
    assert not compiled(region())
    with set_current_vllm_config(config(compile_mm_encoder=True)):
        assert compiled(region())


@pytest.mark.parametrize(
    "mode", [CompilationMode.NONE, CompilationMode.STOCK_TORCH_COMPILE]
)
def test_modes_that_compile_no_regions(api: Any, mode: CompilationMode) -> None:
    with set_current_vllm_config(config(mode=mode)):
        assert not compiled(decorate(api, subclass(Plain))())


def test_ignored(api: Any) -> None:
    assert not compiled(api.ignore_torch_compile(decorate(api, subclass(Plain)))())
    parent = decorate(api, subclass(Plain))
    ignored = api.ignore_torch_compile(subclass(parent))
    assert not compiled(ignored())
    assert compiled(parent())
    assert compiled(decorate(api, subclass(ignored))())


def test_submodules_of_an_ignored_class(api: Any) -> None:
    inner = decorate(api, subclass(Plain))

    @api.ignore_torch_compile
    @api.support_torch_compile
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    assert compiled(Outer())


def test_a_decorated_subclass_of_a_decorated_class(api: Any) -> None:
    child = decorate(api, subclass(decorate(api, subclass(Plain))))
    assert compiled(child())


def test_an_undecorated_subclass_is_compiled_too(api: Any) -> None:
    assert compiled(subclass(decorate(api, subclass(Plain)))())


def test_skip_compiled(api: Any, vllm_config: VllmConfig) -> None:
    module = decorate(api, subclass(Plain))()
    with set_forward_context(None, vllm_config, skip_compiled=True):
        assert not compiled(module)
    assert compiled(module)


def test_already_compiling(api: Any) -> None:
    module = decorate(api, subclass(Plain))()
    with compilation_counter.expect(num_backend_compilations=0):
        outer = torch.compile(lambda x: module(x) * 2, backend="eager", fullgraph=True)
        assert outer(torch.zeros(3)).eq(2).all()
