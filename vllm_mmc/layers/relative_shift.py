# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The relative shift of Transformer-XL's attention, as a view."""

import torch


def relative_shift(scores: torch.Tensor) -> torch.Tensor:
    """Turn scores by distance into scores by key: out[i, j] = scores[i, n - 1 - i + j].

    The usual way is to pad, view and slice. It copies twice the size of the output, and
    a compiler cannot prove its sizes for an unknown number of items: one item would be
    a further graph.

    Source: appendix B of Transformer-XL (https://arxiv.org/abs/1901.02860), as
    `_rel_shift` of transformers' modeling_parakeet.py, cut off after n keys.

    Args:
        scores: [..., n, 2n - 1] of any dtype. Column 0 is the distance n - 1 and the
            last one 1 - n, where a distance is the query's place minus the key's.

    Returns:
        [..., n, n], a view of `scores` if these are contiguous.

    Raises:
        RuntimeError: The last two sizes are not n and 2n - 1.
    """
    n, distances = scores.shape[-2:]
    torch._check(
        distances == 2 * n - 1,
        lambda: "the last two sizes of scores must be n and 2n - 1",
    )
    # Each row begins one place before the row above.
    row = max(distances - 1, 1)
    rows = scores.flatten(-2).narrow(-1, n - 1, n * row)
    return rows.unflatten(-1, (n, row)).narrow(-1, 0, n)
