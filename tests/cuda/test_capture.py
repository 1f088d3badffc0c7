# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""While a CUDA graph is captured: nothing is read, nothing is compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.platforms import current_platform

from mmc_testing.logs import warnings_of
from vllm_mmc.compilation import parity, shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledSmall(nn.Module):
    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ self.weight) * 2


@contextmanager
def capture() -> Iterator[None]:
    with (
        mock.patch.object(type(current_platform), "is_cuda_alike", lambda _: True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
    ):
        yield


@pytest.fixture
def region(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    config = VllmConfig(
        compilation_config=CompilationConfig(
            compile_mm_encoder=True, backend="eager", mode=2
        ),
        additional_config={"vllm_mmc": {"parity_check": request.param}},
    )
    with (
        set_current_vllm_config(config),
        mock.patch.dict(shared_graph._structures, clear=True),
        torch.inference_mode(),
    ):
        yield CompiledSmall()


@pytest.mark.parametrize("region", ["off", "first", "all"], indirect=True)
def test_nothing_is_compared(region: nn.Module) -> None:
    x = torch.randn(5, 8)
    expected = region.forward(x)
    region(x)
    follower = CompiledSmall()
    compared = mock.Mock(side_effect=AssertionError("reads the device"))
    with (
        capture(),
        mock.patch.object(parity, "compare", compared),
        counters.expect(parity_checks=0, graphs=0, fallbacks=0),
    ):
        assert torch.equal(region(x), expected)
        assert torch.equal(follower(x), follower.forward(x))


@pytest.mark.parametrize("region", ["all"], indirect=True)
def test_nothing_is_compiled(region: nn.Module) -> None:
    calls: list[Any] = [torch.randn(5, 8), torch.randn(7, 8)]
    with (
        capture(),
        warnings_of(shared_graph) as logged,
        counters.expect(graphs=0, fallbacks=0),
    ):
        for x in calls:
            assert torch.equal(region(x), region.forward(x))
    assert len(logged) == 1 and "a capture compiles nothing" in logged[0]
    with counters.expect(graphs=1):  # what a later call compiles
        region(calls[0])
