# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Models that are built on a CPU and run what they would run on CUDA."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers import utils as linear_utils
from vllm.model_executor.layers.attention import mm_encoder_attention as stock
from vllm.platforms import current_platform
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_mmc.attention import cpu_kernel
from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.attention.reference import attention_reference
from vllm_mmc.layers import upcast


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, models are built and run as on CUDA: plain linear layers, FlashAttention.

    Of FlashAttention, `vllm_varlen` computes what the kernel would.
    """

    def plain(layer: nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = F.linear

    def flash_attn(*_: Any, **__: Any) -> AttentionBackendEnum:
        return AttentionBackendEnum.FLASH_ATTN

    with contextlib.ExitStack() as stack:

        def patch(target: Any, name: str, value: Any, **options: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, value, **options))

        patch(linear_utils, "dispatch_cpu_unquantized_gemm", plain)
        patch(upcast, "needs_upcast", lambda dtype: False)
        patch(cpu_kernel, "levels", lambda: ())
        patch(type(current_platform), "get_vit_attn_backend", flash_attn)
        for attention in (MMEncoderAttention, stock.MMEncoderAttention):
            patch(attention, "forward_cpu", attention.forward_cuda)
        patch(fa_utils, "flash_attn_varlen_func", vllm_varlen, create=True)
        yield


def package_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """`flash_attn_varlen_func` of the package `flash_attn`, from its arguments alone.

    As in the kernel, queries and keys beyond max_seqlen are not launched, and rows that
    nothing writes keep what was in memory: here NaN.

    Args:
        q: [tokens, heads, head_size].
        k: [tokens, kv_heads, head_size].
        v: as k.
        cu_seqlens_q: [items + 1] int32.
        cu_seqlens_k: as cu_seqlens_q.
        max_seqlen_q: queries of an item that are launched.
        max_seqlen_k: keys of an item that are launched.

    Raises:
        ValueError: for what the kernel refuses, or encoders do not ask for.
    """
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    if dropout_p or causal or window_size != (-1, -1):
        raise ValueError("an encoder drops and hides nothing")
    ends = cu_seqlens_q, cu_seqlens_k
    _attend(q, k, v, out, ends, (max_seqlen_q, max_seqlen_k), softmax_scale)
    return out


def vllm_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    max_seqlen_q: int,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_k: int,
    cu_seqlens_k: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    q_v: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    causal: bool = False,
    softmax_scale: float | None = None,
    *,
    out: torch.Tensor | None = None,
    fa_version: int = 2,
) -> torch.Tensor:
    """The same of `vllm.vllm_flash_attn`, with the arguments that encoders give.

    Args:
        out: as q, contiguous; written into, and returned.
        fa_version: 2, 3 or 4.
    """
    if dropout_p or causal or seqused_k is not None or q_v is not None:
        raise ValueError("an encoder drops and hides nothing")
    if fa_version not in (2, 3, 4):
        raise ValueError(f"there is no FlashAttention {fa_version}")
    if out is None:
        out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    elif out.shape != q.shape or out.dtype != q.dtype or not out.is_contiguous():
        raise ValueError(f"out must be as q: {[*out.shape]} {out.dtype}")
    assert cu_seqlens_k is not None
    ends = cu_seqlens_q, cu_seqlens_k
    _attend(q, k, v, out, ends, (max_seqlen_q, max_seqlen_k), softmax_scale)
    return out


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens: tuple[torch.Tensor, torch.Tensor],
    max_seqlen: tuple[int, int],
    scale: float | None,
) -> None:
    if any(x.dtype != torch.int32 or not x.is_contiguous() for x in cu_seqlens):
        raise ValueError("cu_seqlens must be contiguous int32")
    if any(type(x) is not int for x in max_seqlen):
        raise ValueError("max_seqlen must be an int: the launch depends on it")
    if any(x.dim() != 3 or x.stride(-1) != 1 for x in (q, k, v)):
        raise ValueError("q, k and v must be [tokens, heads, head_size] of dense heads")
    queries, keys = (
        [slice(a, min(b, a + most)) for a, b in itertools.pairwise(ends.tolist())]
        for ends, most in zip(cu_seqlens, max_seqlen, strict=True)
    )
    for rows, columns in zip(queries, keys, strict=True):
        if rows.stop - rows.start != columns.stop - columns.start:
            raise ValueError("an encoder's queries and keys are of the same tokens")
        if rows.start < rows.stop:
            item = q[None, rows], k[None, columns], v[None, columns]
            out[rows] = attention_reference(*item, scale)[0]
