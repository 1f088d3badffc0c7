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


def clip_frames(input_features: Sequence[torch.Tensor]) -> Ints:
    """[clips] int64, of [num_mel_bins, frames] each."""
    return np.array([clip.shape[-1] for clip in input_features], dtype=np.int64)


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


def side_by_side(
    start: Ints, lengths: Ints, *, stride: int, gap: int
) -> tuple[Ints, Ints]:
    """Sequences as one, which convolutions take in one call.

    Args:
        start: Where each sequence starts in the input.
        lengths: Of each sequence.
        stride: Of the convolutions; each sequence begins at a multiple of it.
        gap: The least number of columns behind a sequence that belong to none.

    Returns:
        The input's column of each column, -1 in a gap; and where each sequence begins.
    """
    sections = -(-(lengths + gap) // stride) * stride
    sequence, offset = item_and_offset(sections)
    inside = offset < lengths[sequence]
    return np.where(inside, start[sequence] + offset, -1), starts(sections)


TOKENS_PER_SECOND = 50
"""Of Whisper's encoder."""


def after_convolutions(frames: Ints) -> Ints:
    """Tokens after Whisper's convolutions, of which the second has stride 2."""
    return (frames - 1) // 2 + 1


def packed_buffers(
    features: torch.Tensor,
    like: torch.Tensor,
    *,
    start: Ints,
    frames: Ints,
    tokens: Ints,
    rows: Ints | None = None,
) -> dict[str, torch.Tensor]:
    """What Whisper's encoder takes, from lengths on the host; one copy each.

    Args:
        features: [num_mel_bins, frames].
        like: dtype and device are those of this tensor.
        start: the first frame of each sequence.
        frames: the number of frames of each sequence that the convolutions see, with
            zeros before and after them.
        tokens: the number of tokens of each sequence that are kept.
        rows: indices that the body of a family gathers.

    Returns:
        frames: [num_mel_bins, columns]: sequences side by side. In the gaps between
            them, the convolutions see the zeros that they would pad with.
        gaps: [gaps] int64: the columns of zeros.
        tokens: [tokens] int64: the columns that are kept, after the convolutions.
        positions: [tokens] int64: the offset of each token in its sequence.
        cu_seqlens: [sequences + 1] int32: where sequences start and end.
        max_seqlen: the longest sequence, int32, on the host.
        rows: [rows] int64, if given.
    """
    columns, begin = side_by_side(start, frames, stride=2, gap=1)
    sequence, position = item_and_offset(tokens)
    kept = begin[sequence] // 2 + position
    if len(kept) == 1:  # graphs are made for two tokens or more
        kept, position = kept.repeat(2), position.repeat(2)
        tokens = np.append(tokens, 1)
    device = like.device
    padded = F.pad(features.to(like.dtype), (0, 1))
    values = {
        "frames": padded[:, on_device(columns, device)],
        "gaps": on_device(np.flatnonzero(columns < 0), device),
        "tokens": on_device(kept, device),
        "positions": on_device(position, device),
        "cu_seqlens": on_device(cu_seqlens(tokens), device, torch.int32),
        "max_seqlen": max_seqlen_tensor(int(tokens.max(initial=0))),
    }
    return values if rows is None else values | {"rows": on_device(rows, device)}


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
