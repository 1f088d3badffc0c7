# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Index arithmetic of packed items, from their lengths on the host."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor

Ints: TypeAlias = npt.NDArray[np.int64]
Lengths: TypeAlias = torch.Tensor | Sequence[int] | Ints
"""One per item. The host waits for lengths on a device."""


def host_lengths(lengths: Lengths) -> Ints:
    """[items] int64."""
    with gpu_sync_allowed():
        return torch.as_tensor(lengths, dtype=torch.int64, device="cpu").numpy()


def item_and_offset(lengths: Ints) -> tuple[Ints, Ints]:
    """For each element of the packed sequence: the index of its item and its offset
    within that item.

    `[2, 0, 3]` -> `[0, 0, 2, 2, 2]` and `[0, 1, 0, 1, 2]`.
    """
    item: Ints = np.repeat(np.arange(len(lengths)), lengths)
    return item, np.arange(len(item)) - starts(lengths)[item]


def starts(lengths: Ints) -> Ints:
    """The first element of each item: `[2, 0, 3]` -> `[0, 2, 2]`."""
    return lengths.cumsum() - lengths


def sum_items(values: Ints | Sequence[int], sizes: Ints) -> Ints:
    """The sum of each item's values: `[5, 6, 7]`, sizes `[2, 0, 1]` -> `[11, 0, 7]`."""
    sums, ends = np.append(0, np.cumsum(values)).astype(np.int64), sizes.cumsum()
    return sums[ends] - sums[ends - sizes]


def cu_seqlens(lengths: Ints) -> Ints:
    """`[2, 0, 3]` -> `[0, 2, 2, 5]`."""
    return np.append(0, lengths.cumsum())


def on_device(
    values: Ints, device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """One copy; the host does not wait for it."""
    return async_tensor_h2d(torch.from_numpy(values).to(dtype), device)


def whole_groups(lengths: Ints, step: int) -> Ints:
    """The rows that `mean_pool` takes: tokens left over of an item are dropped.

    [sum(lengths // step) * step].
    """
    item, offset = item_and_offset(lengths // step * step)
    return starts(lengths)[item] + offset


def mean_pool(x: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
    """Mean of each `step` rows: [tokens, width] -> [len(rows) / step, width]."""
    return x[rows].unflatten(0, (-1, step)).mean(1)


def pad_items(x: torch.Tensor, lengths: Ints, padded_lengths: Ints) -> torch.Tensor:
    """Zeros after each item, up to its padded length.

    [sum(lengths), width] -> [sum(padded_lengths), width].
    """
    return pad_rows(x, on_device(padded_groups(lengths, padded_lengths), x.device))


def padded_groups(lengths: Ints, padded_lengths: Ints) -> Ints:
    """The rows that `pad_rows` takes: -1 after each item, up to its padded length.

    [sum(padded_lengths)].
    """
    item, offset = item_and_offset(padded_lengths)
    return np.where(offset < lengths[item], starts(lengths)[item] + offset, -1)


def pad_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[tokens, width] -> [len(rows), width]; row -1 is zeros."""
    return F.pad(x, (0, 0, 0, 1))[rows]


def one_item(
    tokens: int, width: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zeros [tokens, width], two tokens at least, with their cu_seqlens and max_seqlen;
    dtype and device are those of `like`."""
    tokens = max(tokens, 2)  # graphs are made for two tokens or more
    bounds = torch.tensor([0, tokens], dtype=torch.int32, device=like.device)
    return like.new_zeros(tokens, width), bounds, max_seqlen_tensor(tokens)
