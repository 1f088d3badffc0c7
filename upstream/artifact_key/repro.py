# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A subclass shares the saved graph of its base class. Exit status 0: it has its own.

The subclass inherits `forward` and has another submodule. A plugin that replaces one
layer of a model of vLLM is such a class. Both share one key of the compile cache, and
the guards that would tell them apart are not checked. Where saved graphs are loaded,
the second class computes with the graph of the first; on CPU none is loaded yet.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)


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


def run() -> tuple[int, list[bool]]:
    """How many files are saved, and whether each class computes as it does eagerly."""
    mode = CompilationMode.DYNAMO_TRACE_ONCE
    config = VllmConfig(compilation_config=CompilationConfig(mode=mode))
    right = []
    with (
        tempfile.TemporaryDirectory() as root,
        set_current_vllm_config(config),
        torch.inference_mode(),
    ):
        os.environ["VLLM_CACHE_ROOT"] = root
        for base in (Model, OfPlugin):
            compiled = support_torch_compile(dynamic_arg_dims={"x": 0})(
                type(base.__name__, (base,), {})
            )
            model = compiled(vllm_config=config)
            x = torch.randn(5, 8)
            right.append(torch.allclose(model(x), model.proj(x)))
        files = list(Path(root).glob("torch_compile_cache/torch_aot_compile/*"))
    return len(files), right


def main() -> int:
    files, right = run()
    print(f"graphs of 2 classes in {files} file(s); results right: {right}")
    return int(files != 2)


if __name__ == "__main__":
    sys.exit(main())
