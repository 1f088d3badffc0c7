# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM compiles an encoder for the decoder's `compile_sizes`. Exit status 0: no longer.

The toy encoder has two dynamic dimensions, tokens and images. The static graph for 16
tokens takes for granted that there are 16 images, too.
"""

import os
import sys
import tempfile

os.environ.setdefault("VLLM_CACHE_ROOT", tempfile.mkdtemp())

import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context


@support_torch_compile(dynamic_arg_dims={"x": 0, "scales": 0}, is_encoder=True)
class Encoder(torch.nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return (x + 1) * scales.sum()


def main() -> int:
    config = VllmConfig(
        compilation_config=CompilationConfig(
            mode=CompilationMode.VLLM_COMPILE, compile_sizes=[16]
        )
    )
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE  # also on CPU
    config.compilation_config.backend = "inductor"
    config.compilation_config.compile_sizes = [16]
    with set_current_vllm_config(config), torch.inference_mode():
        encoder = Encoder(vllm_config=config)
        found = ""
        for tokens in (24, 16):
            x, scales = torch.randn(tokens, 8), torch.randn(3)
            with set_forward_context(None, vllm_config=config):
                try:
                    right = torch.allclose(encoder(x, scales), (x + 1) * scales.sum())
                    found += f"{tokens} tokens {'right' if right else 'wrong'}; "
                except Exception as error:
                    right = False
                    line = str(error).strip().splitlines()[0]
                    found += f"{tokens} tokens raise {type(error).__name__}: {line}; "
            if not right:
                break
    print(f"an encoder with compile_sizes=[16] and 3 images: {found[:-2]}")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
