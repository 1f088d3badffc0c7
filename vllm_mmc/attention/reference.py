# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What encoder attention means. Slow and obvious; all ops are compared with it."""

import torch


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    kv_lens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each query attends to all keys of its own item, or to the first of them.

    Args:
        q: [batch, seq, heads, head_size].
        k: [batch, seq, kv_heads, head_size]; kv_heads divides heads, and each serves
            heads / kv_heads neighbouring query heads.
        v: as k.
        scale: factor of the scores, default head_size ** -0.5.
        cu_seqlens: [items + 1], ascending: item i is tokens cu_seqlens[i] to
            cu_seqlens[i + 1] of batch and seq laid end to end. Tokens of no item get 0.
            Without it each row of the batch is an item.
        kv_lens: [batch * seq]: how many keys of its item each query attends to.

    Returns:
        [batch, seq, heads, head_size], contiguous, computed in fp64 and rounded once.
    """
    batch, seq, heads, head_size = q.shape
    if cu_seqlens is None:
        cu_seqlens = torch.arange(batch + 1) * seq
    scale = head_size**-0.5 if scale is None else scale
    out = torch.zeros(q.shape, dtype=torch.float64)
    flat = out.flatten(0, 1)
    queries, keys, values = (x.double().flatten(0, 1) for x in (q, k, v))
    for start, end in zip(
        cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True
    ):
        for head in range(heads):
            kv_head = head * k.shape[2] // heads
            scores = queries[start:end, head] @ keys[start:end, kv_head].T * scale
            if kv_lens is not None:
                hidden = torch.arange(end - start) >= kv_lens[start:end, None]
                scores = scores.masked_fill(hidden, -torch.inf)
            flat[start:end, head] = scores.softmax(-1) @ values[start:end, kv_head]
    return out.to(q.dtype)
