# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/kernels/test_onednn.py."""

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("skipping CPU-only tests", allow_module_level=True)


def create_mm():
    return ops.create_onednn_mm(torch.randn(24, 16).t(), 2)


def create_scaled_mm():
    weight = torch.randint(-8, 8, (24, 16), dtype=torch.int8).t()
    scales = torch.ones(1)
    return ops.create_onednn_scaled_mm(weight, scales, torch.bfloat16, True, False, 2)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("create", [create_mm, create_scaled_mm])
def test_handler_is_released_while_dynamo_traces(create):
    handler = create()
    release, released = handler.dtor, []

    def counted(pointer: int):
        released.append(pointer)
        release(pointer)

    handler.dtor = counted
    handler.itself = handler  # left to the garbage collector, which runs anywhere
    del handler
    with FakeTensorMode():
        gc.collect()
    assert len(released) == 1
