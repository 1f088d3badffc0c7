# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/compile/test_rotary_embedding_compile.py."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import Llama4VisionRotaryEmbedding
from vllm.model_executor.models.moonvit import Rope2DPosEmb, apply_rope
from vllm.platforms import current_platform

DEVICE_TYPE = current_platform.device_type


def _complex_products(f, *inputs):
    """The output of the compiled function, and its products of complex numbers."""
    products = []

    def backend(graph_module, example_inputs):
        class Recorder(torch.fx.Interpreter):
            def run_node(self, node):
                out = super().run_node(node)
                if "mul" in str(node.target) and out.is_complex():
                    products.append(node)
                return out

        return Recorder(graph_module).run

    return torch.compile(f, backend=backend, fullgraph=True)(*inputs), products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama4_vision_rotary_compiles_to_real_numbers(dtype):
    """Inductor has no code for complex numbers and falls back to eager kernels."""
    with set_current_vllm_config(VllmConfig()):
        rotary = Llama4VisionRotaryEmbedding(8, 4, 16, 10000, False, torch.float32)
        q, k = torch.randn(2, 2, 17, 3, 8, dtype=dtype, device=DEVICE_TYPE).unbind()
        out, products = _complex_products(rotary.forward_native, q, k)
        torch.testing.assert_close(out, rotary.forward_native(q, k))
    assert not products
    torch.testing.assert_close(out[0][:, -1], q[:, -1])  # the class token stays
    assert not torch.equal(out[0][:, 0], q[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moonvit_rotary_compiles_to_real_numbers(dtype):
    rope_2d = Rope2DPosEmb(dim=8, max_height=4, max_width=4, device=DEVICE_TYPE)
    freqs_cis = rope_2d.get_freqs_cis_by_seqlens_list([(4, 4), (2, 3)])
    q, k = torch.randn(2, 22, 3, 8, dtype=dtype, device=DEVICE_TYPE).unbind()
    out, products = _complex_products(apply_rope, q, k, freqs_cis)
    torch.testing.assert_close(out, apply_rope(q, k, freqs_cis))
    assert not products
