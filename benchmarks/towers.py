# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Encoders as a vLLM worker has them, without an engine around them."""

import importlib
import time
from pathlib import Path
from typing import Any

import torch
from cases import Case
from torch import nn
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers import activation
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_mmc.demo.writer import random_weights


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
    with set_default_torch_dtype(dtype):
        tower = case.build(tower_class, vllm_config)
    weights = random_weights(
        case.shapes(tower, vllm_config),
        seed=0,
        dtype=getattr(torch, rounded_to) if rounded_to else dtype,
    )
    with torch.no_grad():
        case.load(tower, weights)
    # On CPU this packs the weights of linear layers for oneDNN, as in a real load.
    device = torch.device("cpu")
    process_weights_after_loading(tower, vllm_config.model_config, device)
    return tower.eval()


def inputs(case: Case, tower: nn.Module, size: int) -> tuple[Any, ...]:
    """Returns the arguments of one call, floating-point tensors as the tower's."""
    dtype = next(tower.parameters()).dtype
    return tuple(
        arg.to(dtype)
        if isinstance(arg, torch.Tensor) and arg.is_floating_point()
        else arg
        for arg in case.inputs(tower, size)
    )


def seconds(call: Any, *args: Any) -> tuple[float, Any]:
    """Returns the wall time of a call, and its result."""
    begun = time.perf_counter()
    result = call(*args)
    return time.perf_counter() - begun, result


def first_use(vllm_config: VllmConfig) -> dict[str, Any]:
    """Compiles silu(x) + 1 and returns how long it took: Inductor's first use.

    What the first compilation of any process pays, whatever it compiles:
    - importing Dynamo, AOTAutograd and Inductor, and their pattern tables;
    - asking the C++ compiler for its version, building and loading a test program per
      instruction set (into TORCHINDUCTOR_CACHE_DIR);
    - precompiling Inductor's C++ header, about half of it all (into TMPDIR: Inductor
      keeps headers for all its cache directories together);
    - tracing one elementwise function with a varying size, and one run of g++.
    With a warm cache it is the imports, one trace and what is checked on loading.

    The compiler flags are those of the encoder's graphs, so the header is theirs; if
    the encoder needs another one all the same, `headers` (the number of precompiled
    headers) goes up, and both scripts record it before and after. Both sides have
    TORCHINDUCTOR_CACHE_DIR point elsewhere while they compile, vLLM to one directory
    per artifact, this package to one for all. That costs neither side anything of the
    above again: instruction sets are remembered by the process.
    """
    options = {}
    if vllm_config.compilation_config.mode != CompilationMode.VLLM_COMPILE:
        options = vllm_config.compilation_config.inductor_compile_config
    function = torch.compile(_silu_plus_one, dynamic=True, options=options)
    with torch.inference_mode():
        taken, _ = seconds(function, torch.randn(96, 80, dtype=torch.bfloat16))
    torch._dynamo.reset()
    return {"first_use_seconds": taken, "headers": precompiled_headers()}


def _silu_plus_one(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) + 1


def precompiled_headers() -> int:
    from torch._inductor.codecache import _HEADER_DIR

    return sum(1 for _ in Path(_HEADER_DIR).rglob("*.gch"))
