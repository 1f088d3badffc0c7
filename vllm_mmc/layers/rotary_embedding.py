# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Rotary embeddings of encoders, in real arithmetic and not in place.

vLLM's rotary embeddings for Llama4, Pixtral's Mistral format and MoonViT multiply
complex numbers, which Inductor does not fuse. In real arithmetic the same computation
is one elementwise kernel.
"""

import torch


def apply_rotary_emb(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    is_neox_style: bool = True,
    enable_fp32_compute: bool = False,
) -> torch.Tensor:
    """Rotate pairs of elements by the angle of their position, into a new tensor.

    Source: `ApplyRotaryEmb.forward_static` of vLLM's rotary_embedding/common.py. This
    one can also rotate only the first elements of a head.

    Args:
        x: [..., tokens, heads, head_size] of any strides.
        cos: [..., tokens, rotary_dim / 2]; rotary_dim is at most head_size.
        sin: as cos.
        is_neox_style: pair i with i + rotary_dim / 2; otherwise pair 2i with 2i + 1.
        enable_fp32_compute: compute in fp32 and round once; otherwise in x's dtype.

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: cos and sin do not fit x or one another.
    """
    half = cos.shape[-1]
    if cos.shape != sin.shape or 2 * half > x.shape[-1]:
        raise ValueError(
            "cos and sin must be [..., tokens, rotary_dim / 2] with rotary_dim at most "
            f"{x.shape[-1]}, the head size; found {[*cos.shape]} and {[*sin.shape]}"
        )
    dtype = torch.float32 if enable_fp32_compute else x.dtype
    rotated, rest = x[..., : 2 * half].to(dtype), x[..., 2 * half :]
    cos, sin = (t.unsqueeze(-2).to(dtype) for t in (cos, sin))
    if is_neox_style:
        a, b = rotated.chunk(2, dim=-1)
        parts = [a * cos - b * sin, b * cos + a * sin]
    else:
        a, b = rotated.unflatten(-1, (half, 2)).unbind(-1)
        pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
        parts = [pairs.flatten(-2)]
    return torch.cat([*(part.to(x.dtype) for part in parts), rest], dim=-1)


def cos_sin(freqs_cis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a complex table into contiguous fp32 tables, for pairs (2i, 2i + 1).

    `freqs_cis`: the rows, for the positions of the call, of Llama4's
    `Llama4VisionRotaryEmbedding.cos_sin_cache` (without its dimension of heads),
    Pixtral's `precompute_freqs_cis_2d` or MoonViT's `Rope2DPosEmb`.
    """
    return freqs_cis.real.contiguous(), freqs_cis.imag.contiguous()
