# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Encoders as a vLLM worker has them, without an engine around them."""

import importlib
import time
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers import activation
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_mmc.demo.writer import random_weights
from vllm_mmc.prove.cases import Case


def build(
    case: Case, target: str, vllm_config: VllmConfig, rounded_to: str | None = None
) -> nn.Module:
    """Returns an encoder that is ready to run, its weights where vLLM keeps them.

    The weights are random. They depend on their names alone: equal for every class,
    different from layer to layer.

    Args:
        case: of the architecture.
        target: "module:Class".
        vllm_config: the current config; its dtype is that of the encoder.
        rounded_to: dtype that the weights are drawn in, by default that of the config.
    """
    module, _, name = target.partition(":")
    tower_class = getattr(importlib.import_module(module), name)
    # vLLM makes one activation module per process, as the first config wants it. Under
    # a config that compiles it is compiled by itself, even in a tower that is eager.
    activation._ACTIVATION_AND_MUL_REGISTRY._dict.clear()
    activation._ACTIVATION_REGISTRY._dict.clear()
    dtype = vllm_config.model_config.dtype
    device = torch.device(current_platform.device_type)
    with set_default_torch_dtype(dtype), device:
        tower = case.build(tower_class, vllm_config)
    weights = random_weights(
        case.shapes(tower, vllm_config),
        seed=0,
        dtype=getattr(torch, rounded_to) if rounded_to else dtype,
    )
    with torch.no_grad():
        case.load(tower, weights)
    # On CPU this packs the weights of linear layers for oneDNN, as in a real load.
    process_weights_after_loading(tower, vllm_config.model_config, device)
    return tower.eval()


def inputs(case: Case, tower: nn.Module, size: int) -> tuple[Any, ...]:
    """Returns the arguments of one call, as a worker has them.

    Floating-point tensors have the tower's dtype. Lengths, [items], stay on the host.
    """
    like = next(tower.parameters())

    def placed(arg: Any) -> Any:
        if not isinstance(arg, torch.Tensor) or arg.dim() < 2:
            return arg
        return arg.to(like.device, like.dtype if arg.is_floating_point() else None)

    return tuple(map(placed, case.inputs(tower, size)))


def seconds(call: Any, *args: Any) -> tuple[float, Any]:
    """Returns the wall time of a call until the device is done, and its result."""
    synchronize()
    begun = time.perf_counter()
    result = call(*args)
    synchronize()
    return time.perf_counter() - begun, result


def synchronize() -> None:
    """Wait for the device; a CPU has done what it was told."""
    if not current_platform.is_cpu():
        torch.accelerator.synchronize()
