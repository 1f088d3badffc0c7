# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Index arithmetic of packed items equals a loop over the items."""

import numpy as np
import pytest
import torch

from vllm_mmc.encoder.packed import (
    cu_seqlens,
    host_lengths,
    item_and_offset,
    on_device,
    starts,
)


@pytest.mark.parametrize("lengths", [[2, 0, 3], [1], [0], [], [7, 1, 1, 64], [0, 0, 5]])
def test_equals_a_loop(lengths: list[int]) -> None:
    on_host = host_lengths(lengths)
    item, offset = item_and_offset(on_host)
    expected = [(i, p) for i, length in enumerate(lengths) for p in range(length)]
    assert list(zip(item, offset, strict=True)) == expected
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert cu_seqlens(on_host).tolist() == ends
    assert starts(on_host).tolist() == ends[:-1]


def test_lengths_of_any_kind() -> None:
    for lengths in ([3, 1], torch.tensor([3, 1]), np.array([3, 1], np.int32)):
        found = host_lengths(lengths)
        assert found.dtype == np.int64
        assert found.tolist() == [3, 1]


def test_on_device_keeps_values_and_converts() -> None:
    found = on_device(np.array([1, 2]), torch.device("cpu"), torch.int32)
    assert found.dtype == torch.int32
    assert found.tolist() == [1, 2]
