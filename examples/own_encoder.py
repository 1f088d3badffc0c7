# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`support_torch_compile` on an encoder of your own: one graph for all its blocks.

python examples/own_encoder.py
"""

import torch
from torch import nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from vllm_mmc.compilation import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm_mmc.compilation.counters import counters

HIDDEN = 64


@support_torch_compile(
    dynamic_arg_dims={"x": 0},  # the number of tokens varies
    mark_unbacked_dims={"x": 0},  # and can be 1
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class Block(nn.Module):
    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.down = nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.up(self.norm(x)))
        return x + self.down(hidden)


class Encoder(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(prefix=f"blocks.{i}") for i in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [tokens, HIDDEN]
        for block in self.blocks:
            x = block(x)
        return x


def main() -> None:
    config = VllmConfig(compilation_config=CompilationConfig(compile_mm_encoder=True))
    with set_current_vllm_config(config), torch.inference_mode():
        encoder = Encoder(depth=12)
        for tokens in (100, 1, 7, 2048):
            x = torch.randn(tokens, HIDDEN)
            eager = x
            for block in encoder.blocks:
                eager = block.forward(eager)
            difference = (encoder(x) - eager).abs().max()
            print(f"{tokens} tokens: largest difference from eager {difference:.1e}")
    print(f"12 blocks, {counters.graphs + counters.artifact_loads} graph")


if __name__ == "__main__":
    main()
