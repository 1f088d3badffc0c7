# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""When two tensors count as equal.

The truth is the float32 reference. Nobody is asked to be nearer to it than plain
PyTorch is in the same dtype: the allowance is that reference's own error, times a
small factor, plus a floor for the case that the reference is exact.

    ratio = allowance(reference=stock_bf16, truth=stock_fp32)
    assert_close("visual.blocks.3", ours_bf16, stock_fp32, ratio=ratio)

Errors are ratios of root mean squares: RMS(actual - expected) / RMS(expected). One
number for the whole tensor, so small entries near zero cannot fail alone, and a single
wrong row out of hundreds still shows. `largest_difference` tells the worst entry.
"""

import torch

from vllm_mmc.prove.parity import FLOORS, allowance, rms_ratio

__all__ = ["FLOORS", "allowance", "assert_close", "largest_difference", "rms_ratio"]


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest absolute difference of two entries, computed in float64."""
    difference = actual.detach().double().cpu() - expected.detach().double().cpu()
    return difference.abs().max().item() if difference.numel() else 0.0


def assert_close(
    name: str,
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    ratio: float,
    dtype: torch.dtype | None = None,
) -> float:
    """Fails unless `actual` equals `expected` up to an RMS error ratio.

    Args:
        name: of the tensor, for the message.
        actual: what is tested.
        expected: the truth, same shape; it may be wider than `actual`.
        ratio: the allowed RMS error ratio, for instance from `allowance`.
        dtype: that `actual` must have; by default that of `expected`.

    Returns:
        The RMS error ratio.

    Raises:
        AssertionError: if a shape or dtype differs, either side is empty or has a NaN
            or an infinity, or the error is too large.
    """
    wanted_dtype = dtype or expected.dtype
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    if actual.dtype != wanted_dtype:
        raise AssertionError(f"{name}: dtype {actual.dtype}, expected {wanted_dtype}")
    if not actual.numel():
        raise AssertionError(f"{name}: nothing to compare, the tensor is empty")
    for side, tensor in (("actual", actual), ("expected", expected)):
        if broken := int((~torch.isfinite(tensor)).sum()):
            raise AssertionError(
                f"{name}: {broken} of {tensor.numel()} entries of the {side} tensor"
                " are NaN or infinite"
            )
    error = rms_ratio(actual, expected)
    if not error <= ratio:
        worst = largest_difference(actual, expected)
        raise AssertionError(
            f"{name}: RMS error ratio {error:.3g} is above {ratio:.3g}"
            f" (largest difference {worst:.3g}, shape {tuple(actual.shape)},"
            f" {actual.dtype} against {expected.dtype})"
        )
    return error
