# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compiled rotary embeddings of Llama4 and MoonViT are complex. Exit status 0: real.

Inductor generates no code for complex numbers: each such operation is a kernel of its
own, as in eager mode. Counted are the operations whose result is complex.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config


def compiled(f: Callable[..., Any], *inputs: torch.Tensor) -> tuple[Any, int]:
    """The result of f, compiled, and its number of complex operations."""
    operations = 0

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        class Count(torch.fx.Interpreter):
            def run_node(self, node: torch.fx.Node) -> Any:
                nonlocal operations
                out = super().run_node(node)
                if node.op.startswith("call") and isinstance(out, torch.Tensor):
                    view = out._is_view()
                    operations += out.is_complex() and not view
                return out

        return Count(graph).run

    return torch.compile(f, backend=backend, fullgraph=True)(*inputs), operations


def llama4() -> tuple[Callable[..., Any], list[torch.Tensor]]:
    from vllm.model_executor.layers.rotary_embedding import get_rope
    from vllm.model_executor.models import mllama4

    # The dtype that the model asks for is part of what is shown.
    source = Path(mllama4.__file__).read_text()
    dtype = torch.complex64 if "dtype=torch.complex64" in source else torch.float32
    parameters = {"rope_type": "mllama4", "rope_theta": 10000}
    parameters["partial_rotary_factor"] = 0.5
    rotary = get_rope(8, 16, False, parameters, dtype)
    return rotary.forward_native, [torch.randn(2, 17, 3, 8) for _ in range(2)]


def moonvit() -> tuple[Callable[..., Any], list[torch.Tensor]]:
    from vllm.model_executor.models.moonvit import Rope2DPosEmb, apply_rope

    angles = Rope2DPosEmb(8, 4, 4, device="cpu").get_freqs_cis_by_seqlens_list([(4, 4)])
    return apply_rope, [*(torch.randn(16, 3, 8) for _ in range(2)), angles]


def main() -> int:
    said, broken = [], False
    torch.manual_seed(0)
    with set_current_vllm_config(VllmConfig()):
        for name, make in {"Llama4": llama4, "MoonViT": moonvit}.items():
            f, inputs = make()
            found, operations = compiled(f, *inputs)
            equal = all(map(torch.allclose, found, f(*inputs)))
            said.append(f"{name}: {operations}, {'right' if equal else 'wrong'}")
            broken |= operations > 0 or not equal
    print(f"complex operations in a compiled rotary embedding: {'; '.join(said)}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
