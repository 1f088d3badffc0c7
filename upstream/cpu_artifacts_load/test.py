# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/compile/test_aot_compile.py."""

from pathlib import Path

import pytest
import torch
from vllm.compilation.counter import compilation_counter
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.envs import disable_envs_cache


@support_torch_compile(dynamic_arg_dims={"x": 0})
class LinearMod(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: torch.Tensor):
        return x @ self.weight


def test_trace_once_loads_what_an_equal_module_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As the blocks of an encoder on CPU: the first compiles, the others load."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    disable_envs_cache()
    vllm_config = VllmConfig(
        compilation_config=CompilationConfig(mode=CompilationMode.DYNAMO_TRACE_ONCE)
    )
    with (
        set_current_vllm_config(vllm_config),
        torch.inference_mode(),
        compilation_counter.expect(
            num_aot_compiles=1, num_aot_artifacts_saved=1, num_aot_artifacts_loaded=2
        ),
    ):
        for n_rows in (5, 6, 9):
            mod = LinearMod(vllm_config=vllm_config)
            x = torch.randn(n_rows, 8)
            torch.testing.assert_close(mod(x), x @ mod.weight)
            x = torch.randn(n_rows + 3, 8)
            torch.testing.assert_close(mod(x), x @ mod.weight)
