# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Encoder attention as custom ops for graphs; each fake has the op's own signature.

All ops compute `attention.reference.attention_reference`. Arguments of all ops:

    q: [batch, seq, heads, head_size]; views of one qkv buffer are not copied.
    k, v: [batch, seq, kv_heads, head_size]; kv_heads divides heads.
    scale: factor of the scores, default head_size ** -0.5.
    cu_seqlens: [items + 1] int32: where items begin and end in the tokens of the batch
        laid end to end. None: each row of the batch is an item.
    Returns: [batch, seq, heads, head_size], contiguous, of q's dtype.

`flash_attn_maxseqlen_wrapper` and `triton_attn_wrapper` have the arguments of vLLM's
ops (vllm/v1/attention/ops/vit_attn_wrappers.py), but never wait for the device.
"""

import itertools
from collections.abc import Callable
from typing import Any, overload

import torch
import torch.nn.functional as F
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from vllm_mmc.attention import cpu_choice, cpu_kernel
from vllm_mmc.compat.capture import capturing

_library = torch.library.Library("vllm_mmc", "FRAGMENT")


def _register(op: Callable[..., torch.Tensor], *, cpu_only: bool = False) -> None:
    """Make it torch.ops.vllm_mmc.<its name>.

    The fake has the signature of the op because it is made of it: argument order and
    defaults cannot differ.
    """

    def fake(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty_like(q, memory_format=torch.contiguous_format)

    direct_register_custom_op(
        op.__name__,
        op,
        fake_impl=fake,
        target_lib=_library,
        dispatch_key="CPU" if cpu_only else current_platform.dispatch_key,
    )


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
) -> None:
    batch, seq, heads, head_size = q.shape
    kv_heads = k.shape[2]
    if not k.shape == v.shape == (batch, seq, kv_heads, head_size):
        raise ValueError(
            "q, k and v must be [batch, seq, heads, head_size] and differ in heads "
            f"only; found {[*q.shape]}, {[*k.shape]} and {[*v.shape]}"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"heads of k ({kv_heads}) must divide heads of q ({heads})")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k and v must have one dtype; found {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0):
        raise ValueError(
            f"cu_seqlens must be [items + 1], 1 or more; found {[*cu_seqlens.shape]}"
        )


def _check_kv_lens(q: torch.Tensor, kv_lens: torch.Tensor | None) -> None:
    tokens = q.shape[0] * q.shape[1]
    if kv_lens is not None and kv_lens.shape != (tokens,):
        raise ValueError(
            f"kv_lens must be [batch * seq], [{tokens}]; found {[*kv_lens.shape]}"
        )


# ---------------------------------------------------------------- CPU


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    kv_lens: torch.Tensor | None = None,
    provider: str = cpu_choice.AUTO,
) -> torch.Tensor:
    """fp32, bf16 and fp16, each item by the provider that is fastest for its length.

    The providers are paths of csrc/cpu, which add up in fp32, and PyTorch's attention.

    Args:
        kv_lens: as in `prefix_sdpa`, by csrc/cpu alone. Neighbouring tokens with the
            same keys are one piece of work: chunks are fast, and one key more for each
            token is slow.
        provider: one of `cpu_choice.PROVIDERS` for all items, or "auto".
    """
    _check(q, k, v, cu_seqlens)
    _check_kv_lens(q, kv_lens)
    if q.dtype not in cpu_kernel.DTYPES:
        raise ValueError(f"q must be fp32, bf16 or fp16; found {q.dtype}")
    if q.numel() == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if kv_lens is not None:
        level = None if provider == cpu_choice.AUTO else provider
        return cpu_kernel.varlen_attention(q, k, v, scale, cu_seqlens, kv_lens, level)
    parts = cpu_choice.parts(q.dtype, provider)
    if cu_seqlens is None:
        parts = tuple(part for part in parts if q.shape[1] <= part.longest)[:1]
    if len(parts) == 1:
        if parts[0].provider == cpu_choice.SDPA:
            return batched_sdpa(q, k, v, scale, cu_seqlens)
        return cpu_kernel.varlen_attention(
            q, k, v, scale, cu_seqlens, level=parts[0].provider
        )
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for part in parts:
        if part.provider == cpu_choice.SDPA:
            assert cu_seqlens is not None
            _batched_sdpa(q, k, v, scale, cu_seqlens, part[:2], out)
        else:
            cpu_kernel.varlen_attention(
                q, k, v, scale, cu_seqlens, None, part.provider, part[:2], out
            )
    return out


def batched_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> torch.Tensor:
    """PyTorch's scaled_dot_product_attention, one call for all items of one length."""
    _check(q, k, v, cu_seqlens)
    if cu_seqlens is None:
        return _sdpa(q, k, v, scale).contiguous()
    return _batched_sdpa(q, k, v, scale, cu_seqlens, cpu_kernel.ALL_LENGTHS, None)


def _batched_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    cu_seqlens: torch.Tensor,
    lengths: tuple[int, int],
    out: torch.Tensor | None,
) -> torch.Tensor:
    """Of items with so many tokens; of others, and they alone, `out` keeps its rows."""
    bounds, total = cu_seqlens.tolist(), q.shape[0] * q.shape[1]
    if bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > total:
        raise cpu_kernel.bounds_error(bounds, total)
    starts: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(bounds):
        if end > start and lengths[0] <= end - start <= lengths[1]:
            starts.setdefault(end - start, []).append(start)
    for length, found in starts.items():
        if out is None and len(found) * length == total:  # all there is, end to end
            shape = q.shape
            if shape[0] != len(found):
                q, k, v = (x.reshape(-1, length, *x.shape[2:]) for x in (q, k, v))
            return _sdpa(q, k, v, scale).contiguous().view(shape)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q, k, v, flat = (x.flatten(0, 1) for x in (q, k, v, out))
    flat[: bounds[0]], flat[bounds[-1] :] = 0, 0
    for length, found in starts.items():
        first, count = found[0], len(found)
        if found[-1] == first + (count - 1) * length:  # end to end: views
            tokens = slice(first, first + count * length)
            a, b, c = (x[tokens].unflatten(0, (count, length)) for x in (q, k, v))
            flat[tokens] = _sdpa(a, b, c, scale).flatten(0, 1)
        else:
            index = torch.tensor(found)[:, None] + torch.arange(length)
            flat[index] = _sdpa(q[index], k[index], v[index], scale)
    return out


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


_register(varlen_attention, cpu_only=True)
_register(batched_sdpa, cpu_only=True)


# ------------------------------------------------- any device, PyTorch's attention


def prefix_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: torch.Tensor | None = None,
    kv_lens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each token sees the first `kv_lens` tokens of its item, in one SDPA call.

    Causal by chunks, as encoders that listen live are: a token's kv_lens is the end of
    its chunk.

    Args:
        cu_seqlens: every token is of an item.
        max_seqlen: the longest item, a tensor on the host.
        kv_lens: [batch * seq] int, 1 or more; more than its item has means all of it.
            None: all of it.

    Raises:
        ValueError: for shapes that do not fit, or a max_seqlen on a device.
    """
    _check(q, k, v, cu_seqlens)
    _check_kv_lens(q, kv_lens)
    tokens = q.shape[0] * q.shape[1]
    if tokens == 0:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    seq = _on_host(max_seqlen, q, cu_seqlens)
    cu_seqlens = _cu_seqlens(q, cu_seqlens).long()
    items = cu_seqlens.numel() - 1
    token = torch.arange(tokens, device=q.device)
    item = torch.bucketize(token, cu_seqlens[1:], right=True)
    rows = token - cu_seqlens[item] + item * seq
    seen = cu_seqlens.diff()[item]
    if kv_lens is not None:
        seen = torch.minimum(seen, kv_lens)

    def padded(x: torch.Tensor) -> torch.Tensor:
        out = x.new_zeros(items * seq, *x.shape[2:])
        out[rows] = x.flatten(0, 1)
        return out.view(items, seq, *x.shape[2:]).transpose(1, 2)

    # Padding rows attend to one key (an empty softmax is NaN) and are dropped below.
    limits = seen.new_ones(items * seq).index_copy_(0, rows, seen)
    mask = torch.arange(seq, device=q.device) < limits.view(items, 1, seq, 1)
    out = F.scaled_dot_product_attention(
        padded(q),
        padded(k),
        padded(v),
        attn_mask=mask,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2).flatten(0, 1)[rows].view(q.shape)


_register(prefix_sdpa)


# ---------------------------------------------------------------- GPU


def flash_attn_maxseqlen_wrapper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch_size: int,
    is_rocm_aiter: bool,
    fa_version: int | None,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: torch.Tensor | None = None,
) -> torch.Tensor:
    """flash-attn: AITER's, vLLM's, or where vLLM has none the package `flash_attn`.

    Args:
        batch_size: q's first dimension.
        is_rocm_aiter: take AITER's.
        fa_version: of vLLM's, None for its default. The package has one.
        max_seqlen: the longest item, a tensor on the host.

    Raises:
        ValueError: for shapes that do not fit, or a max_seqlen on a device.
    """
    _check(q, k, v, cu_seqlens)
    longest = _on_host(max_seqlen, q, cu_seqlens)
    kwargs: dict[str, Any] = {}
    takes_out = False
    if is_rocm_aiter:
        from aiter import flash_attn_varlen_func

        kwargs["window_size"] = (-1, -1)
    else:
        flash_attn_varlen_func, takes_out = _flash_attn()
        if takes_out and fa_version is not None:
            kwargs["fa_version"] = fa_version
    if takes_out and capturing():
        kwargs["out"] = _output(q).flatten(0, 1)
    cu_seqlens = _cu_seqlens(q, cu_seqlens)
    out = flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q, k, v)),
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=False,
        **kwargs,
    )
    if not takes_out and capturing():
        token = torch.arange(out.shape[0], device=q.device)
        of_an_item = (token >= cu_seqlens[0]) & (token < cu_seqlens[-1])
        out = torch.where(of_an_item[:, None, None], out, 0)
    return out.contiguous().view(q.shape)


def triton_attn_wrapper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch_size: int,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: torch.Tensor | None = None,
) -> torch.Tensor:
    """vLLM's Triton kernel for prefill, without a cache; arguments as above."""
    from vllm.v1.attention.ops.triton_prefill_attention import context_attention_fwd

    _check(q, k, v, cu_seqlens)
    longest = _on_host(max_seqlen, q, cu_seqlens)
    cu_seqlens = _cu_seqlens(q, cu_seqlens)
    out = _output(q)
    context_attention_fwd(
        *(x.flatten(0, 1) for x in (q, k, v, out)),
        b_start_loc=cu_seqlens[:-1],
        b_seq_len=cu_seqlens[1:] - cu_seqlens[:-1],
        max_input_len=longest,
        is_causal=False,
        sliding_window_q=None,
        sliding_window_k=None,
        softmax_scale=scale,
    )
    return out


def _on_host(
    max_seqlen: torch.Tensor | None, q: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> int:
    """The launch bound of the kernels; without one, what is surely enough."""
    if max_seqlen is None:
        return q.shape[1] if cu_seqlens is None else q.shape[0] * q.shape[1]
    if max_seqlen.device.type != "cpu":
        raise ValueError(
            "max_seqlen must be an int or a tensor on the host: reading it from "
            f"{max_seqlen.device} would wait for the device in every layer"
        )
    return int(max_seqlen)


def _cu_seqlens(q: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    if cu_seqlens is not None:
        return cu_seqlens
    batch, seq = q.shape[:2]
    return torch.arange(
        0, (batch + 1) * seq, step=max(seq, 1), dtype=torch.int32, device=q.device
    )[: batch + 1]


def _output(q: torch.Tensor) -> torch.Tensor:
    """What a kernel writes the tokens of items into, and no others.

    In a replay of a CUDA graph, tokens of no item must not hold what was there before.
    """
    new = torch.zeros_like if capturing() else torch.empty_like
    return new(q, memory_format=torch.contiguous_format)


def _flash_attn() -> tuple[Callable[..., torch.Tensor], bool]:
    """The function, and whether it is vLLM's, which takes `out` and `fa_version`."""
    try:
        from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func
    except ImportError:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func, False
    return flash_attn_varlen_func, not current_platform.is_rocm()


_register(flash_attn_maxseqlen_wrapper)
_register(triton_attn_wrapper)


@overload
def max_seqlen_tensor(max_seqlen: int | torch.Tensor) -> torch.Tensor: ...
@overload
def max_seqlen_tensor(max_seqlen: None) -> None: ...
@overload
def max_seqlen_tensor(
    max_seqlen: int | torch.Tensor | None,
) -> torch.Tensor | None: ...


def max_seqlen_tensor(max_seqlen: int | torch.Tensor | None) -> torch.Tensor | None:
    """As the ops take it: what is a tensor does not become part of a graph."""
    if max_seqlen is None or isinstance(max_seqlen, torch.Tensor):
        return max_seqlen
    return torch.full((), max_seqlen, dtype=torch.int32, device="cpu")
