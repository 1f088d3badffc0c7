# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A subclass computes with the graph of its base class. Exit status 0: with its own.

The subclass inherits `forward` and has another submodule. A plugin that replaces one
layer of a model of vLLM is such a class. Both share one key of the compile cache, and
the guards that would tell them apart are dropped.
"""

import os
import sys
import tempfile

import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Transposed(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


class Model(torch.nn.Module):
    layer: type[torch.nn.Module] = Linear

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.proj = self.layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class OfPlugin(Model):
    layer = Transposed


def right(mode: CompilationMode) -> list[bool]:
    """Whether the base class and the subclass compute as they do eagerly."""
    config = VllmConfig(
        compilation_config=CompilationConfig(mode=mode, compile_sizes=[])
    )
    config.compilation_config.mode = mode  # on CPU it has become another
    found = []
    with (
        tempfile.TemporaryDirectory() as os.environ["VLLM_CACHE_ROOT"],
        set_current_vllm_config(config),
        set_forward_context({}, config),
        torch.inference_mode(),
    ):
        for base in (Model, OfPlugin):
            compiled = support_torch_compile(dynamic_arg_dims={"x": 0})(
                type(base.__name__, (base,), {})
            )
            model = compiled(vllm_config=config)
            x = torch.randn(5, 8)
            found.append(torch.allclose(model(x), model.proj(x)))
    return found


def main(mode: CompilationMode = CompilationMode.VLLM_COMPILE) -> int:
    base, of_plugin = right(mode)
    print(f"{mode.name}: base class right: {base}; subclass right: {of_plugin}")
    return int(not (base and of_plugin))


if __name__ == "__main__":
    sys.exit(main())
