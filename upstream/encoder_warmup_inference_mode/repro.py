# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""On CPU, the first request after the warm-up of a compiled encoder raises an error.

Exit status 0: it is answered. The warm-up of the CPU model runner runs with an encoder
layer in the place of a model, then a request does.
"""

import os
import sys
import tempfile
from types import SimpleNamespace

import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class Layer(torch.nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.proj = torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


def main() -> int:
    compilation = CompilationConfig(mode=CompilationMode.DYNAMO_TRACE_ONCE)
    config = VllmConfig(compilation_config=compilation)
    with (
        tempfile.TemporaryDirectory() as os.environ["VLLM_CACHE_ROOT"],
        set_current_vllm_config(config),
    ):
        layer = Layer(vllm_config=config)
        runner = SimpleNamespace(
            vllm_config=config, profile_run=lambda: layer(torch.randn(5, 8))
        )
        CPUModelRunner.warming_up_model(runner)  # type: ignore[arg-type]
        try:
            with torch.inference_mode():  # as in execute_model
                x = torch.randn(7, 8)
                right = torch.allclose(layer(x), layer.proj(x))
        except RuntimeError as error:
            print(f"the first request: {str(error).partition('.')[0]}")
            return 1
    print(f"the first request: right: {right}")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
