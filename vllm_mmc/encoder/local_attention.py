# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Attention and convolution of packed clips in which a token sees few tokens before it.

The tokens of all clips are side by side, [tokens, hidden], and masks, made on the host
once per call, keep clips apart. A chunk of attention may begin anywhere, because its
mask alone decides what a token sees.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view

from vllm_mmc.encoder.packed import Ints, item_and_offset, on_device, pad_items


def pack(
    x: torch.Tensor, lengths: Ints, attention: Any, window: tuple[int, int], kernel: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The masks that keep clips apart; there are at least two chunks.

    Args:
        x: [sum(lengths), hidden], the tokens of all clips.
        lengths: [clips], the number of tokens.
        attention: Has the sizes of chunks and of their contexts.
        window: A token sees the first to the last of these places; place 0 is
            `max_past_horizon` tokens before the token.
        kernel: The number of tokens that the convolution sees.

    Returns:
        The tokens [tokens, hidden], with zeros after few; which keys of the context
        each token attends to, bool [chunks, 1, chunk, context]; and which of the tokens
        before it the convolution sees, bool [tokens, kernel].
    """
    chunk, context = attention.chunk_size, attention.context_size
    before = attention.max_past_horizon
    clip, offset = item_and_offset(lengths)
    zeros = max(chunk + 1 - len(clip), 0)  # graphs are made for two chunks or more
    offset = np.pad(offset, (0, zeros))
    chunks = -(-len(offset) // chunk)
    clip = np.pad(clip, (before, zeros + chunk + context), constant_values=-1)
    keys = sliding_window_view(clip, context)[::chunk][:chunks, None]
    queries = clip[before:][: chunks * chunk].reshape(chunks, chunk, 1)
    place = np.arange(context) - np.arange(chunk)[:, None]
    attended = (keys == queries) & (window[0] <= place) & (place <= window[1])
    convolved = offset[:, None] >= np.arange(kernel)[::-1]
    return (
        F.pad(x, (0, 0, 0, zeros)),
        on_device(attended[:, None], x.device, torch.bool),
        on_device(convolved, x.device, torch.bool),
    )


def unpack(x: torch.Tensor, lengths: Ints, length: int) -> tuple[torch.Tensor, Any]:
    """[tokens, width] -> [clips, length, width], zeros after each clip; and which are
    of a clip, bool [clips, length]."""
    padded = pad_items(x, lengths, np.full(len(lengths), length))
    mask = np.arange(length) < lengths[:, None]
    return padded.unflatten(0, mask.shape), on_device(mask, x.device, torch.bool)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    relative_key: torch.Tensor,
    mask: torch.Tensor,
    attention: Any,
    masked_logit: float,
) -> torch.Tensor:
    """Attention within a window, of [tokens, heads, head_dim], to [tokens, hidden].

    Args:
        relative_key: [places, heads, head_dim]; a later place has none.
        mask: [chunks, 1, chunk, context], from `pack`.
    """
    tokens = query.shape[0]
    chunks, _, chunk, context = mask.shape
    # Always by the same width: no graph asks whether a chunk is left over.
    query = F.pad(query, (0, 0, 0, 0, 0, chunk))[: chunks * chunk]
    query = query.unflatten(0, (chunks, chunk)).transpose(1, 2)
    ends = (0, 0, 0, 0, attention.max_past_horizon, context)
    key, value = (
        F.pad(x, ends).unfold(0, context, chunk)[:chunks] for x in (key, value)
    )
    by_place = query @ relative_key.permute(1, 2, 0)
    by_place = F.pad(by_place, (0, context + 1 - by_place.shape[-1]))
    by_place = by_place.flatten(-2)[..., : chunk * context]
    logits = query @ key + by_place.unflatten(-1, (chunk, context))
    logits = torch.tanh(logits / attention.softcap) * attention.softcap
    logits = logits.masked_fill(~mask, masked_logit)
    weights = F.softmax(logits, -1, dtype=torch.float32).to(value.dtype)
    x = (weights @ value.transpose(2, 3)).transpose(1, 2)
    return x.reshape(chunks * chunk, -1)[:tokens]


def convolve(x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each channel of [tokens, hidden] with its own kernel, over the tokens before.

    Args:
        weight: [hidden, 1, kernel].
        mask: [tokens, kernel], from `pack`.
    """
    tokens, kernel = mask.shape
    before = F.pad(x.float(), (0, 0, kernel - 1, 0))
    seen = (before[i:][:tokens].where(mask[:, i, None], 0) for i in range(kernel))
    return sum(s * weight[:, 0, i].float() for i, s in enumerate(seen)).to(x.dtype)
