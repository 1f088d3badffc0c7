# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Choose MKL's kernels for sine, cosine and the like before several threads ask.

Why: MKL chooses the kernel of each such function at its first call. If two threads make
    that call at once, as they do for a large tensor, one of them may get a kernel of
    low accuracy, for its share of this one call: a rotary table or the sinusoids of an
    encoder are then off by some 1e-4 for as long as the process lives.
Upstream: no folder, it is PyTorch's: https://github.com/pytorch/pytorch/issues/188792
Remove when: PyTorch for CPU is built with oneMKL 2025.0 or newer.
Undo: nothing is kept.
"""

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "sin", "tan", "tanh", "erf", "erfc", "erfinv"),
    *("exp", "log", "log2", "log10", "sqrt", "trunc"),
)
"""For which torch calls MKL; see IMPLEMENT_VML_MKL in ATen/cpu/vml.h."""


def applies() -> str | None:
    """Why it does nothing; None if it does what it is for."""
    import torch

    return None if torch.backends.mkl.is_available() else "PyTorch is built without MKL"


def resolve() -> None:
    """Call each with one number, which one thread computes."""
    if applies() is not None:
        return
    import torch

    for dtype in (torch.float32, torch.float64):
        number = torch.zeros(1, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(number)
