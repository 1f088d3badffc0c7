# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Layer norm that the compiler leaves to PyTorch on CPU."""

import torch
import torch.nn as nn
from vllm.platforms import current_platform

_library = torch.library.Library("vllm_mmc", "FRAGMENT")
_library.define(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor"
)


@torch.library.impl(_library, "layer_norm", "CPU")
def _layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)[0]


@torch.library.register_fake("vllm_mmc::layer_norm", lib=_library)
def _layer_norm_fake(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class LayerNorm(nn.LayerNorm):
    """[..., width] -> [..., width], as `nn.LayerNorm` over one dimension.

    Inductor adds the residual, sums, divides, sums squares and normalises in up to five
    loops over all rows. PyTorch's kernel finishes a row while it is in the processor's
    cache.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return torch.ops.vllm_mmc.layer_norm(x, self.weight, self.bias, self.eps)


def layer_norm_for(module: nn.Module) -> type[LayerNorm] | None:
    """The class for a layer norm of PyTorch on CPU.

    None for subclasses of PyTorch's class, for norms of several dimensions and for any
    other module.
    """
    if type(module) is not nn.LayerNorm or len(module.normalized_shape) != 1:
        return None
    return LayerNorm if current_platform.is_cpu() else None
