# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Matrix products in float32, for CPUs without instructions for the encoder's dtype.

An x86 CPU without AVX512_BF16 multiplies bfloat16 four to seven times slower than
float32: oneDNN converts each pair of numbers in software. The products are equal up to
the rounding of the result, because both are accumulated in float32.
"""

import platform

import torch
import torch.nn as nn
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.platforms import current_platform

from vllm_mmc.compat import symbols

logger = init_logger(__name__)

INSTRUCTIONS = {torch.bfloat16: "avx512_bf16", torch.float16: "avx512_fp16"}
"""The one of `torch.cpu.get_capabilities()` that multiplies a dtype. AMX implies it."""


def needs_upcast(dtype: torch.dtype) -> bool:
    """Whether matrix products of this dtype are faster in float32.

    Only x86 CPUs have been measured; on other machines vLLM's products stay.
    """
    if not current_platform.is_cpu() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    instructions = INSTRUCTIONS.get(dtype)
    return bool(instructions) and not torch.cpu.get_capabilities().get(instructions)


class UpcastLinearMethod(UnquantizedLinearMethod):
    """Weights kept in float32; inputs and results in the dtype of the layer.

    The weights take twice the memory that they would take in a dtype of 16 bits.
    """

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        dtype = layer.weight.dtype
        layer.weight.data = layer.weight.data.float()
        super().process_weights_after_loading(layer)
        if not layer.weight.numel():  # it has been packed
            layer.weight.data = layer.weight.data.to(dtype)
        product = symbols.CPU_LINEAR.of(layer)

        def upcast(
            x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
        ) -> torch.Tensor:
            bias = bias if bias is None else bias.float()
            return product(x.float(), weight, bias).to(dtype)

        symbols.CPU_LINEAR.set(layer, upcast)


class _UpcastConv(nn.Module):
    def _conv_forward(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        bias = bias if bias is None else bias.float()
        convolved = super()._conv_forward(x.float(), weight.float(), bias)
        return convolved.to(x.dtype)


class UpcastConv1d(_UpcastConv, nn.Conv1d):
    """[N, C_in, L] -> [N, C_out, L_out], of the input's dtype."""


class UpcastConv2d(_UpcastConv, nn.Conv2d):
    """[N, C_in, H, W] -> [N, C_out, H_out, W_out], of the input's dtype."""


CONVOLUTIONS = {nn.Conv1d: UpcastConv1d, nn.Conv2d: UpcastConv2d}


def upcast_for(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns x of any shape in the dtype that `layer` multiplies in.

    Cast an activation that sits between two upcast layers to float32, so it is not
    rounded to bfloat16 in between.
    """
    method = getattr(layer, "quant_method", None)
    upcast = isinstance(layer, _UpcastConv) or isinstance(method, UpcastLinearMethod)
    return x.float() if upcast else x


def linear_method_for(layer: nn.Module) -> UpcastLinearMethod | None:
    """What a linear layer of vLLM multiplies with, if float32 is faster.

    None for quantised layers and for any other module. vLLM calls the method when it
    has loaded the weights.
    """
    unquantised = (
        isinstance(layer, LinearBase)
        and type(layer.quant_method) is UnquantizedLinearMethod
    )
    usable = unquantised and symbols.CPU_LINEAR.usable()
    return UpcastLinearMethod() if usable and _is_faster(layer.weight) else None


def convolution_for(layer: nn.Module) -> type[_UpcastConv] | None:
    """The class for a convolution of PyTorch, if float32 is faster.

    None for subclasses of PyTorch's classes and for any other module.
    """
    upcast = CONVOLUTIONS.get(type(layer))
    return upcast if upcast is not None and _is_faster(layer.weight) else None


def _is_faster(weight: torch.Tensor) -> bool:
    if not needs_upcast(weight.dtype):
        return False
    logger.info_once(
        "The encoder multiplies in float32, because this CPU has no instructions "
        "for %s. Its weights take twice the memory.",
        weight.dtype,
    )
    return True
