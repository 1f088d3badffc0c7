# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""On CPU, vLLM compiles again what it has saved. Exit status 0: it loads that.

Two equal modules are compiled in the mode that vLLM takes on CPU.
"""

import os
import sys
import tempfile

import torch
from vllm.compilation.counter import compilation_counter
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)


@support_torch_compile(dynamic_arg_dims={"x": 0})
class Layer(torch.nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def main() -> int:
    compilation = CompilationConfig(mode=CompilationMode.DYNAMO_TRACE_ONCE)
    config = VllmConfig(compilation_config=compilation)
    with (
        tempfile.TemporaryDirectory() as os.environ["VLLM_CACHE_ROOT"],
        set_current_vllm_config(config),
        torch.inference_mode(),
    ):
        layers = [Layer(vllm_config=config) for _ in range(2)]
        x = torch.randn(5, 8)
        right = all(torch.allclose(m(x), x @ m.weight) for m in layers)
    compiles = compilation_counter.num_aot_compiles
    loads = compilation_counter.num_aot_artifacts_loaded
    print(
        f"2 equal modules: {compiles} compiled, {loads} loaded, results right: {right}"
    )
    return int((compiles, loads, right) != (1, 1, True))


if __name__ == "__main__":
    sys.exit(main())
