# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The relative shift and the batch norm of conformers: stock's values, one graph."""

import pytest
import torch
import torch.nn as nn
from torch._dynamo.testing import CompileCounter
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderAttention

from vllm_mmc.layers.batch_norm import BatchNorm1d
from vllm_mmc.layers.relative_shift import relative_shift

SIZES = [1, 2, 3, 4, 7, 50, 63, 200]


def scores(n: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, n, 2 * n - 1, generator=torch.manual_seed(n))


def by_definition(x: torch.Tensor) -> torch.Tensor:
    """out[i, j] = x[i, n - 1 - i + j], row by row."""
    n = x.shape[-2]
    rows = [x[..., i, n - 1 - i : 2 * n - 1 - i] for i in range(n)]
    return torch.stack(rows, dim=-2)


@pytest.mark.parametrize("n", SIZES)
def test_it_moves_what_stock_moves(n: int) -> None:
    x = scores(n)
    stock = ParakeetEncoderAttention._rel_shift(None, x)[..., :n]
    assert torch.equal(relative_shift(x), stock)
    assert torch.equal(stock, by_definition(x))


@pytest.mark.parametrize("n", SIZES)
def test_any_layout_dtype_and_rank(n: int) -> None:
    x = scores(n, batch=3)
    for given in (
        x[1:],  # it does not start where its storage does
        x.transpose(0, 1),
        x.mT.contiguous().mT,
        x[0, 0],
        x.bfloat16(),
        (x * 100).int(),
    ):
        assert torch.equal(relative_shift(given), by_definition(given))


def test_it_is_a_view() -> None:
    x = scores(5)
    assert relative_shift(x).untyped_storage().data_ptr() == x.data_ptr()


@pytest.mark.parametrize("shape", [(4, 8), (4, 6), (2, 2), (1, 2)])
def test_other_sizes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="2n - 1"):
        relative_shift(torch.zeros(2, *shape))


def test_one_graph_for_all_sizes() -> None:
    counter = CompileCounter()

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return relative_shift(x + 1)

    compiled = torch.compile(shifted, fullgraph=True, backend=counter)
    for n in (50, *SIZES[1:], 199):
        x = scores(n, batch=n % 3 + 1)
        torch._dynamo.decorators.mark_unbacked(x, 0)
        torch._dynamo.mark_dynamic(x, (2, 3))
        assert torch.equal(compiled(x), by_definition(x + 1))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_is_stocks(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stock = nn.BatchNorm1d(6)
    for tensor in (stock.weight.data, stock.bias.data, stock.running_mean):
        tensor.normal_()
    stock.running_var.uniform_(0.5, 2)
    stock = stock.eval().to(dtype)
    ours = BatchNorm1d(6).eval().to(dtype)
    ours.load_state_dict(stock.state_dict())
    counter = CompileCounter()
    compiled = torch.compile(ours.forward, fullgraph=True, backend=counter)
    with torch.inference_mode():
        for items in (3, 1, 2):
            x = torch.randn(items, 6, 7).to(dtype)
            torch._dynamo.decorators.mark_unbacked(x, 0)
            assert torch.equal(ours(x), stock(x))
            assert torch.equal(compiled(x), stock(x))
    assert counter.frame_count == 1
