# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ranks that all add the bias after the sum, and stock, where rank 0 adds it before."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor import parameter
from vllm.model_executor.layers import linear

from vllm_mmc.encoder.install import in_place_of
from vllm_mmc.layers import row_parallel
from vllm_mmc.layers.row_parallel import UnrankedRowParallelLinear, unranked_for

RANKS, IN, OUT = 2, 12, 5


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    with set_current_vllm_config(VllmConfig()):
        yield


def layer(monkeypatch: pytest.MonkeyPatch, rank: int, **options: Any) -> Any:
    for module in (linear, parameter):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
        size = "get_tensor_model_parallel_world_size"
        monkeypatch.setattr(module, size, lambda: RANKS)
    made = linear.RowParallelLinear(IN, OUT, **options)
    made.weight.data = torch.randn(made.weight.shape, dtype=made.weight.dtype)
    if made.bias is not None:
        # Each rank has the whole bias.
        made.bias.data = torch.arange(OUT, dtype=made.bias.dtype) + 1
    made.quant_method.process_weights_after_loading(made)
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("skip_bias_add", [True, False])
@pytest.mark.parametrize("return_bias", [True, False])
def test_the_sum_of_all_ranks_is_stocks(
    bias: bool, skip_bias_add: bool, return_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "bias": bias,
        "skip_bias_add": skip_bias_add,
        "return_bias": return_bias,
    }
    layers = [layer(monkeypatch, rank, **options) for rank in range(RANKS)]
    inputs = torch.randn(RANKS, 3, IN // RANKS)
    partial: list[torch.Tensor] = []

    def hand_in(x: torch.Tensor) -> torch.Tensor:
        partial.append(x)
        return x

    for module in (linear, row_parallel):
        monkeypatch.setattr(module, "tensor_model_parallel_all_reduce", hand_in)
    stock = [one(x) for one, x in zip(layers, inputs, strict=True)]
    expected = sum(partial)
    partial.clear()
    for one, x in zip(layers, inputs, strict=True):
        in_place_of(one, UnrankedRowParallelLinear)(x)
    total = sum(partial)
    monkeypatch.setattr(
        row_parallel, "tensor_model_parallel_all_reduce", lambda _: total
    )
    for one, x, found in zip(layers, inputs, stock, strict=True):
        ours = in_place_of(one, UnrankedRowParallelLinear)(x)
        assert isinstance(ours, tuple) == isinstance(found, tuple) == return_bias
        output = ours[0] if return_bias else ours
        torch.testing.assert_close(output, expected)
        if return_bias:
            assert ours[1] is found[1]


def test_a_layer_that_does_not_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = layer(monkeypatch, 1, bias=False, reduce_results=False)
    x = torch.randn(3, IN // RANKS)
    ours = in_place_of(stock, UnrankedRowParallelLinear)
    assert torch.equal(ours(x)[0], stock(x)[0])


def test_the_output_has_the_dtype_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = layer(monkeypatch, 1, params_dtype=torch.bfloat16)
    stock.bias.data = stock.bias.float()  # as vLLM does for a product of its own
    monkeypatch.setattr(row_parallel, "tensor_model_parallel_all_reduce", lambda x: x)
    x = torch.randn(3, IN // RANKS, dtype=torch.bfloat16)
    assert in_place_of(stock, UnrankedRowParallelLinear)(x)[0].dtype == torch.bfloat16


def test_which_layers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unranked_for(layer(monkeypatch, 0)) is UnrankedRowParallelLinear
    whole = layer(monkeypatch, 0, disable_tp=True)
    splits = layer(monkeypatch, 0, input_is_parallel=False)
    ours = in_place_of(layer(monkeypatch, 0), UnrankedRowParallelLinear)
    quantised = layer(monkeypatch, 0)
    quantised.quant_method = object()
    for other in (whole, splits, quantised, ours, torch.nn.Linear(2, 2)):
        assert unranked_for(other) is None
