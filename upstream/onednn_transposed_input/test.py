# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/kernels/test_onednn.py."""

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("skipping CPU-only tests", allow_module_level=True)

N, K, M = 24, 16, 9


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_onednn_gemm_transposed_input(batch: int, dtype: torch.dtype, compiled: bool):
    weight = torch.randn(N, K, dtype=dtype)
    handler = ops.create_onednn_mm(weight.t(), 2)

    def linear(x: torch.Tensor):
        return ops.onednn_mm(handler, x, None)

    if compiled:
        torch._dynamo.reset()
        linear = torch.compile(linear, backend="eager", fullgraph=True)
    x = torch.randn(batch, K, M, dtype=dtype).transpose(1, 2)
    # bf16: the product in float32 is rounded once by each of the two.
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(
        linear(x), x @ weight.t(), atol=tolerance, rtol=tolerance
    )
