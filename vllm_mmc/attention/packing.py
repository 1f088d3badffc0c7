# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Lengths on the host -> where packed items begin, and what belongs to which."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor

Ints: TypeAlias = npt.NDArray[np.int64]
Lengths: TypeAlias = torch.Tensor | Sequence[int] | Ints
"""One per item. On the host: what lies on a device makes the host wait."""


def host_lengths(lengths: Lengths) -> Ints:
    """[items] int64."""
    with gpu_sync_allowed():
        return torch.as_tensor(lengths, dtype=torch.int64, device="cpu").numpy()


def places(lengths: Ints) -> tuple[Ints, Ints]:
    """Of every element, items of these lengths end to end: its item, its place there.

    `[2, 0, 3]` -> `[0, 0, 2, 2, 2]` and `[0, 1, 0, 1, 2]`.
    """
    item: Ints = np.repeat(np.arange(len(lengths)), lengths)
    return item, np.arange(len(item)) - begins(lengths)[item]


def begins(lengths: Ints) -> Ints:
    """Where each item begins: `[2, 0, 3]` -> `[0, 2, 2]`."""
    return lengths.cumsum() - lengths


def cu_seqlens(lengths: Ints) -> Ints:
    """`[2, 0, 3]` -> `[0, 2, 2, 5]`."""
    return np.append(0, lengths.cumsum())


def on_device(
    values: Ints, device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """One copy, for which nobody waits."""
    return async_tensor_h2d(torch.from_numpy(values).to(dtype), device)


def pooled(x: torch.Tensor, lengths: Ints, step: int) -> torch.Tensor:
    """Items of these lengths, [tokens, width], -> the mean of each `step` tokens of an
    item, [pooled tokens, width]; what is left over of an item is dropped."""
    item, place = places(lengths // step * step)
    rows = on_device(begins(lengths)[item] + place, x.device)
    return x[rows].unflatten(0, (-1, step)).mean(1)


def spread(x: torch.Tensor, lengths: Ints, rooms: Ints) -> torch.Tensor:
    """Items of these lengths, [tokens, width], -> each in a room of so many tokens,
    [sum(rooms), width], zeros behind it."""
    item, place = places(lengths)
    rows = on_device(begins(rooms)[item] + place, x.device)
    return x.new_zeros(rooms.sum(), x.shape[1]).index_copy_(0, rows, x[: len(rows)])


def one_item(
    tokens: int, width: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zeros [tokens, width], two tokens at least, with their cu_seqlens and max_seqlen;
    dtype and device are those of `like`."""
    tokens = max(tokens, 2)  # a graph takes for granted that there are more than one
    bounds = torch.tensor([0, tokens], dtype=torch.int32, device=like.device)
    return like.new_zeros(tokens, width), bounds, max_seqlen_tensor(tokens)
