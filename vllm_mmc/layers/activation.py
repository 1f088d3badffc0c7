# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""GELU between two matrix products, where there is nothing to fuse it with."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from vllm.model_executor.layers.activation import GELU

_library = torch.library.Library("vllm_mmc", "FRAGMENT")
_library.define("gelu_(Tensor(a!) x) -> ()")


@torch.library.impl(_library, "gelu_", "CPU")
def _gelu_(x: torch.Tensor) -> None:
    torch.ops.aten.gelu_(x)


@torch.library.register_fake("vllm_mmc::gelu_", lib=_library)
def _gelu_fake(x: torch.Tensor) -> None:
    pass


def gelu_(x: torch.Tensor) -> torch.Tensor:
    """Exact GELU (by erf), which may be written over x.

    On CPU it is PyTorch's own kernel, in place, and opaque to the compiler: what
    Inductor makes of `F.gelu` takes twice as long there, and an output of its own takes
    as long again, for fresh pages.

    Args:
        x: of any shape and floating dtype; not to be used afterwards.

    Returns:
        x's shape and dtype.
    """
    if x.device.type != "cpu":
        return F.gelu(x)
    torch.ops.vllm_mmc.gelu_(x)
    return x


def activate_(activation_fn: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`activation_fn(x)`, by `gelu_` if it is vLLM's exact GELU: see there."""
    return gelu_(x) if isinstance(activation_fn, GELU) else activation_fn(x)
