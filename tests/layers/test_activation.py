# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""GELU in place: PyTorch's numbers, and in a graph no copy."""

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import run_and_get_code

from vllm_mmc.layers.activation import gelu_


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 3), (1, 7), (33, 129), (2, 3, 64)])
def test_the_same_numbers_in_place(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape, generator=torch.manual_seed(0)) * 3).to(dtype)
    expected = F.gelu(x)
    assert gelu_(x) is x
    assert torch.equal(x, expected)


def test_op() -> None:
    torch.library.opcheck(torch.ops.vllm_mmc.gelu_.default, (torch.randn(5, 9),))


def test_in_a_graph_nothing_is_copied() -> None:
    first, second = torch.randn(32, 16), torch.randn(16, 32)

    def mlp(x: torch.Tensor) -> torch.Tensor:
        return gelu_(x @ first.T) @ second.T

    torch._dynamo.reset()
    x = torch.randn(6, 16)
    compiled = torch.compile(mlp, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        found, (code,) = run_and_get_code(compiled, x)
        torch.testing.assert_close(found, F.gelu(x @ first.T) @ second.T)
        torch.testing.assert_close(compiled(x[:3]), found[:3])
    assert code.count("vllm_mmc.gelu_.default(") == 1
    assert "cpp_fused" not in code  # the kernel of a copy
