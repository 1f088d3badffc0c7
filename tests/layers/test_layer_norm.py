# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Layer norm on CPU: PyTorch's numbers, and in a graph PyTorch's kernel."""

import pytest
import torch
import torch.nn as nn
from torch._inductor.utils import run_and_get_code
from vllm.platforms import current_platform

from vllm_mmc.layers.layer_norm import LayerNorm, layer_norm_for


def both(width: int, **kwargs: bool) -> tuple[nn.LayerNorm, LayerNorm]:
    """Stock's and ours, with the same parameters."""
    stock, ours = nn.LayerNorm(width, **kwargs), LayerNorm(width, **kwargs)
    for parameter in stock.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 7), (1, 7), (33, 129), (2, 3, 64)])
def test_the_same_numbers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, generator=torch.manual_seed(0)) * 3).to(dtype)
    for kwargs in ({}, {"bias": False}, {"elementwise_affine": False}):
        stock, ours = both(shape[-1], **kwargs)
        with torch.inference_mode():
            assert torch.equal(ours.to(dtype)(x), stock.to(dtype)(x))


def test_op() -> None:
    x = torch.randn(5, 9)
    for parameter in (None, torch.randn(9)):
        for given in (x, torch.randn(9, 5).T):
            args = (given, parameter, parameter, 1e-5)
            torch.library.opcheck(torch.ops.vllm_mmc.layer_norm.default, args)


def test_in_a_graph_only_the_sum_is_compiled() -> None:
    stock, ours = both(64)

    def block(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + y
        return x, ours(x)

    torch._dynamo.reset()
    x, y = torch.randn(2, 6, 64)
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        found, (code,) = run_and_get_code(compiled, x, y)
        assert torch.equal(found[1], stock(x + y))
        assert torch.equal(compiled(x[:3], y[:3])[1], found[1][:3])
    assert code.count("vllm_mmc.layer_norm.default(") == 1
    assert "rsqrt" not in code


class OfTheirOwn(nn.LayerNorm):
    pass


def test_which_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layer_norm_for(nn.LayerNorm(4)) is LayerNorm
    for other in (OfTheirOwn(4), nn.LayerNorm((2, 4)), nn.Linear(2, 2)):
        assert layer_norm_for(other) is None
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert layer_norm_for(nn.LayerNorm(4)) is None
