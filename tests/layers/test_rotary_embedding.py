# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Each form of rotary embedding: the numbers of vLLM and Hugging Face, no change."""

from collections.abc import Callable

import pytest
import torch
from transformers.models.llama4 import modeling_llama4
from transformers.models.pixtral import modeling_pixtral
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.common import ApplyRotaryEmb
from vllm.model_executor.layers.rotary_embedding.llama4_vision_rope import (
    Llama4VisionRotaryEmbedding,
)
from vllm.model_executor.models import moonvit, pixtral

from vllm_mmc.layers.rotary_embedding import apply_rotary_emb, cos_sin

TOKENS, HEADS, SIZE = 17, 3, 88
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Rotate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def qk(dtype: torch.dtype, batch: int = 2) -> list[torch.Tensor]:
    """Views of one qkv buffer [batch, tokens, heads, size]."""
    buffer = torch.randn(batch, TOKENS, 3, HEADS, SIZE, generator=torch.manual_seed(0))
    return list(buffer.to(dtype).unbind(2)[:2])


def angles() -> torch.Tensor:
    return torch.randn(TOKENS, SIZE // 2, generator=torch.manual_seed(1)) * 3


def real() -> tuple[torch.Tensor, torch.Tensor]:
    return angles().cos(), angles().sin()


def table() -> torch.Tensor:
    return torch.polar(torch.ones(TOKENS, SIZE // 2), angles())


def ours(neox: bool, fp32: bool, cos: torch.Tensor, sin: torch.Tensor) -> Rotate:
    return lambda q, k: (
        apply_rotary_emb(q, cos, sin, neox, fp32),
        apply_rotary_emb(k, cos, sin, neox, fp32),
    )


def llama4() -> Llama4VisionRotaryEmbedding:
    with set_current_vllm_config(VllmConfig()):
        return Llama4VisionRotaryEmbedding(
            SIZE, SIZE // 2, 16, 10000.0, False, torch.complex64
        )


def llama4_hugging_face(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return modeling_llama4.vision_apply_rotary_emb(q, k, llama4().cos_sin_cache)


def llama4_ours() -> Rotate:
    return ours(False, True, *cos_sin(llama4().cos_sin_cache.flatten(1)))


def by_vllm(neox: bool, fp32: bool) -> Rotate:
    cos, sin = angles().cos(), angles().sin()
    rotate = ApplyRotaryEmb.forward_static
    return lambda q, k: (
        rotate(q, cos, sin, neox, fp32),
        rotate(k, cos, sin, neox, fp32),
    )


def pixtral_hugging_face(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    cos, sin = (torch.cat([t, t], dim=-1).to(q.dtype) for t in real())
    return modeling_pixtral.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)


def pixtral_vllm(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    # vLLM 0.33 takes the real view of the table.
    is_real = hasattr(pixtral, "_apply_rotary_emb_vit_real")
    freqs = torch.view_as_real(table()) if is_real else table()
    return pixtral.apply_rotary_emb_vit(q, k, freqs)


def moonvit_vllm(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rotated = [moonvit.apply_rope(a, b, table()) for a, b in zip(q, k, strict=True)]
    return tuple(torch.stack(x) for x in zip(*rotated, strict=True))


# Made when asked for: a test that forks must come before torch has computed anything.
FORMS: dict[str, Callable[[], tuple[Rotate, Rotate]]] = {
    "Qwen": lambda: (by_vllm(True, False), ours(True, False, *real())),
    "neox fp32": lambda: (by_vllm(True, True), ours(True, True, *real())),
    "interleaved": lambda: (by_vllm(False, False), ours(False, False, *real())),
    "interleaved fp32": lambda: (by_vllm(False, True), ours(False, True, *real())),
    "Pixtral": lambda: (pixtral_vllm, ours(False, True, *cos_sin(table()))),
    "Pixtral, HF": lambda: (pixtral_hugging_face, ours(True, False, *real())),
    "MoonViT": lambda: (moonvit_vllm, ours(False, True, *cos_sin(table()))),
    "Llama4": lambda: (llama4().forward_native, llama4_ours()),
    "Llama4, HF": lambda: (llama4_hugging_face, llama4_ours()),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_numbers(form: str, dtype: torch.dtype) -> None:
    expected, found = (rotate(*qk(dtype)) for rotate in FORMS[form]())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        # Two products and a sum may be rounded once or, with FMA, less often.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(a, b, rtol=eps, atol=2 * eps)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_written_into(form: str) -> None:
    rotate = FORMS[form]()[1]
    q, k = qk(torch.float32)
    before = q.clone(), k.clone()
    found = rotate(q, k)
    assert torch.equal(q, before[0]) and torch.equal(k, before[1])
    inputs = {x.untyped_storage().data_ptr() for x in (q, k)}
    assert inputs.isdisjoint(x.untyped_storage().data_ptr() for x in found)


def test_only_a_part_of_a_head() -> None:
    q, _ = qk(torch.float32)
    cos, sin = angles()[:, :16].cos(), angles()[:, :16].sin()
    for neox in (True, False):
        found = apply_rotary_emb(q, cos, sin, neox)
        expected = ApplyRotaryEmb.forward_static(q[..., :32], cos, sin, neox)
        assert torch.equal(found[..., :32], expected)
        assert torch.equal(found[..., 32:], q[..., 32:])


@pytest.mark.parametrize("sizes", [(45, 45), (44, 43)])
def test_bad_tables(sizes: tuple[int, int]) -> None:
    q, _ = qk(torch.float32)
    cos, sin = (torch.ones(TOKENS, size) for size in sizes)
    with pytest.raises(ValueError, match="rotary_dim at most 88, the head size"):
        apply_rotary_emb(q, cos, sin)


@pytest.mark.parametrize("form", ["Qwen", "Pixtral", "Llama4"])
def test_full_graph_without_complex_numbers(form: str) -> None:
    rotate = FORMS[form]()[1]
    seen: list[object] = []

    def backend(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.extend(node.meta.get("example_value") for node in module.graph.nodes)
        return module

    def block(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotate(q * 2, k)

    torch._dynamo.reset()  # each form is another value of `rotate`
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend=backend)
    q, k = qk(torch.bfloat16)
    for a, b in zip(compiled(q, k), block(q, k), strict=True):
        assert torch.equal(a, b)
    tensors = [x for x in seen if isinstance(x, torch.Tensor)]
    assert tensors and not any(x.is_complex() for x in tensors)
