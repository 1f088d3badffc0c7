# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""How far two tensors may differ: `mmc_testing.parity` says why."""

import torch

ALLOWANCE_FACTOR = 2.0
# What may be lost when only the order of the additions changes, per dtype.
FLOORS = {
    torch.float32: 2e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def rms_ratio(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns RMS(actual - expected) / RMS(expected), computed in float64.

    Two tensors of zeros give 0.0; a difference from an expected zero gives inf.
    """
    truth = expected.detach().double().cpu()
    error = (actual.detach().double().cpu() - truth).square().mean().sqrt().item()
    size = truth.square().mean().sqrt().item()
    if error == 0:
        return 0.0
    return error / size if size else float("inf")


def allowance(
    *,
    reference: torch.Tensor,
    truth: torch.Tensor,
    factor: float = ALLOWANCE_FACTOR,
) -> float:
    """Returns the RMS error ratio that is allowed beside `truth`.

    Args:
        reference: what stock code computes in the dtype under test.
        truth: the same in float32.
        factor: how many times the reference's error is allowed.

    Raises:
        ValueError: if the truth is not float32 or wider, the shapes differ, or the
            reference's dtype has no floor.
    """
    if truth.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the truth must be float32 or float64, not {truth.dtype}")
    if reference.shape != truth.shape:
        raise ValueError(
            f"shapes differ: {tuple(reference.shape)} and {tuple(truth.shape)}"
        )
    if reference.dtype not in FLOORS:
        raise ValueError(f"no floor for {reference.dtype}")
    return factor * rms_ratio(reference, truth) + FLOORS[reference.dtype]
