# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Products in float32: as exact as the dtype allows, and only where they are faster."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import (
    LinearBase,
    ReplicatedLinear,
    UnquantizedLinearMethod,
)
from vllm.platforms import current_platform

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, tower_context
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.layers import upcast
from vllm_mmc.layers.activation import gelu_

ENGINE = FAMILIES["whisper"].engine_args
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU of 2017, whatever this one is."""
    monkeypatch.setattr(upcast, "needs_upcast", HALVES.__contains__)


@pytest.fixture(scope="module")
def context(whisper: Path) -> Iterator[None]:
    with tower_context(whisper, dtype="bfloat16", **ENGINE):
        yield


def installed(root: nn.Module) -> nn.Module:
    return install(root, EncoderPlan(), VllmConfig())


def test_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"avx512_bf16": True, "avx512_fp16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert not upcast.needs_upcast(torch.bfloat16)
    assert upcast.needs_upcast(torch.float16)
    assert not upcast.needs_upcast(torch.float32)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not upcast.needs_upcast(torch.float16)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    assert not upcast.needs_upcast(torch.float16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.usefixtures("no_instructions")
def test_all_of_an_encoder_and_nothing_else(dtype: str, whisper: Path) -> None:
    with tower_context(
        whisper, dtype=dtype, compile_mm_encoder=True, **ENGINE
    ) as config:
        model = load_model(config)
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "quant_method", None), upcast.UpcastLinearMethod)
        or isinstance(module, tuple(upcast.CONVOLUTIONS.values()))
    }
    expected = {
        name
        for name, module in model.named_modules()
        if name.startswith("model.encoder.")
        and isinstance(module, (LinearBase, nn.Conv1d))
    }
    assert len(expected) == 2 + 4 * 4
    assert found == (expected if dtype == "bfloat16" else set())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("no_instructions", "context")
def test_linear(dtype: torch.dtype, bias: bool) -> None:
    generator = torch.manual_seed(0)
    layer = ReplicatedLinear(96, 160, bias=bias, params_dtype=dtype, disable_tp=True)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    weight = layer.weight.data.double()
    installed(nn.Sequential(layer))
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(7, 96, generator=generator).to(dtype)
    found, _ = layer(x)
    exact = x.double() @ weight.T + (layer.bias.double() if bias else 0)
    assert_rounded_once(found, exact, dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (nn.Conv1d(12, 20, 3, stride=2, padding=1), (3, 12, 33)),
        (nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=False), (3, 5, 16, 9)),
    ],
)
@pytest.mark.usefixtures("no_instructions")
def test_convolution(
    dtype: torch.dtype, convolution: nn.Module, shape: tuple[int, ...]
) -> None:
    layer = convolution.to(dtype)
    x = torch.randn(shape, generator=torch.manual_seed(0)).to(dtype)
    root = nn.Sequential(layer)
    installed(root)
    found = root(x)
    assert layer.weight.dtype == dtype
    assert_rounded_once(found, root.double()(x.double()), dtype)


def assert_rounded_once(
    found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype
) -> None:
    assert found.dtype == dtype
    # Half a unit in the last place, and what float32 adds up.
    half = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), exact, rtol=half, atol=2e-5)


@pytest.mark.usefixtures("no_instructions", "context")
def test_between_two_products_nothing_is_rounded() -> None:
    """In a graph the casts of `upcast_for` meet those of the product, and vanish."""
    torch.manual_seed(0)
    first, second = (
        ReplicatedLinear(32, 32, params_dtype=torch.bfloat16, disable_tp=True)
        for _ in range(2)
    )
    for layer in (first, second):
        layer.weight.data.normal_(std=0.2)
        layer.bias.data.normal_()
    weights = [(x.weight.data.float(), x.bias.data.float()) for x in (first, second)]
    installed(nn.Sequential(first, second))
    for layer in (first, second):
        layer.quant_method.process_weights_after_loading(layer)

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return second(gelu_(upcast.upcast_for(second, first(x)[0])))[0]

    torch._dynamo.reset()
    x = torch.randn(9, 32).bfloat16()
    with torch.inference_mode():
        found = torch.compile(mlp, fullgraph=True, dynamic=True)(x)
    exact = F.linear(F.gelu(F.linear(x.float(), *weights[0])), *weights[1])
    assert_rounded_once(found, exact.double(), torch.bfloat16)
    assert upcast.upcast_for(nn.Conv1d(2, 2, 1), x).dtype == x.dtype


@pytest.mark.usefixtures("no_instructions", "context")
def test_quantised_layers_and_subclasses_stay() -> None:
    class Quantised(UnquantizedLinearMethod):
        pass

    class OwnConv(nn.Conv1d):
        pass

    layer = ReplicatedLinear(8, 8, params_dtype=torch.bfloat16, disable_tp=True)
    layer.quant_method = Quantised()
    own = OwnConv(4, 4, 3).bfloat16()
    root = installed(nn.Sequential(layer, own))
    assert type(root[0].quant_method) is Quantised
    assert type(root[1]) is OwnConv
