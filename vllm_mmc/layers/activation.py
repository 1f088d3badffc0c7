# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""GELU between two matrix products, where the compiler has nothing to fuse it with."""

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
    """Exact GELU (by erf), which may overwrite x.

    On CPU this is PyTorch's kernel, in place, and opaque to the compiler. Inductor's
    code for `F.gelu` takes twice as long there, and a new output tensor takes as long
    again, because its memory pages are new.

    Args:
        x: of any shape and floating dtype. The caller must not use x afterwards.

    Returns:
        x's shape and dtype.
    """
    if x.device.type != "cpu":
        return F.gelu(x)
    torch.ops.vllm_mmc.gelu_(x)
    return x


def activate_(activation_fn: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`activation_fn(x)`; vLLM's exact GELU runs as `gelu_`."""
    return gelu_(x) if isinstance(activation_fn, GELU) else activation_fn(x)
