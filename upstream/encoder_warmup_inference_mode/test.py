# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/v1/worker/test_cpu_model_runner.py, a new file."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.platforms import current_platform

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="CPU model runner; needs the CPU platform"
)


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class EncoderLayer(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.proj = torch.nn.Linear(8, 8, bias=False)  # its weight requires a gradient

    def forward(self, x: torch.Tensor):
        return self.proj(x)


def test_requests_after_the_warm_up_of_an_encoder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A graph that is compiled outside of inference mode cannot run inside of it."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    vllm_config = VllmConfig(
        compilation_config=CompilationConfig(mode=CompilationMode.DYNAMO_TRACE_ONCE)
    )
    with set_current_vllm_config(vllm_config):
        layer = EncoderLayer(vllm_config=vllm_config)
        runner = SimpleNamespace(
            vllm_config=vllm_config, profile_run=lambda: layer(torch.randn(5, 8))
        )
        CPUModelRunner.warming_up_model(runner)
        with torch.inference_mode():
            for n_rows in (5, 7):
                x = torch.randn(n_rows, 8)
                torch.testing.assert_close(layer(x), layer.proj(x))
