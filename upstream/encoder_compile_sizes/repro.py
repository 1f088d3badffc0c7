# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM compiles an encoder for the decoder's `compile_sizes`. Exit status 0: no longer.

The toy encoder has two dynamic dimensions, tokens and images. The static graph for 16
tokens takes for granted that there are 16 images, too.
"""

import sys

import torch
import vllm._custom_ops  # noqa: F401 - vLLM 0.31 needs the operators before it compiles
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.forward_context import set_forward_context


@support_torch_compile(dynamic_arg_dims={"x": 0, "images": 0}, is_encoder=True)
class Encoder(torch.nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        x, y = x.view(-1, 8), images.view(8, -1)
        return x @ (y @ y.T)


def main() -> int:
    config = VllmConfig(
        compilation_config=CompilationConfig(
            mode=CompilationMode.VLLM_COMPILE, compile_sizes=[16]
        )
    )
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE  # also on CPU
    config.compilation_config.backend = "inductor"
    config.compilation_config.compile_sizes = [16]
    right = {}
    with set_current_vllm_config(config), torch.inference_mode():
        encoder = Encoder(vllm_config=config)
        images = torch.randn(16, 8)[:3]
        for tokens in (24, 16):
            x, y = torch.randn(tokens, 8), images.view(8, -1)
            with set_forward_context(None, vllm_config=config):
                out = encoder(x, images)
            right[tokens] = torch.allclose(out, x @ (y @ y.T), atol=1e-4)
    said = [f"{n} tokens {'right' if ok else 'wrong'}" for n, ok in right.items()]
    print(f"compile_sizes=[16], 3 images: {', '.join(said)}")
    return int(not all(right.values()))


if __name__ == "__main__":
    sys.exit(main())
