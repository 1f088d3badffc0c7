# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`CompiledX` for each multimodal architecture X of vLLM that has no file of its own.

The classes are made when they are asked for: vLLM's registry, its inspection process
and its workers do `getattr(module, name)`. A suffix behind "@" is left out: vLLM keeps
what it knows of a class under the class's name, and the name brings vLLM's version in.
"""

import importlib
from contextlib import nullcontext
from typing import Any

import torch.nn as nn
from vllm.config import VllmConfig
from vllm.model_executor.models.registry import _VLLM_MODELS

from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.decorators import should_torch_compile_mm_encoder
from vllm_mmc.models.interfaces import SupportsCompiledEncoder

_PREFIX = "Compiled"


class AutoCompiledEncoder(SupportsCompiledEncoder):
    """The encoder of a stock class, surveyed before the first request."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        if super().__new__ is object.__new__:
            return super().__new__(cls)
        # The stock class makes an instance of another one, by the checkpoint's version.
        switch = should_torch_compile_mm_encoder(vllm_config)
        with stock_compile_off(vllm_config) if switch else nullcontext():
            made = super().__new__(cls, vllm_config=vllm_config, prefix=prefix)
        if not isinstance(made, cls):
            made.__class__ = _compiled(type(made), _PREFIX + type(made).__name__)
            made.mark_unmarked_encoder(vllm_config)
        return made

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.mark_unmarked_encoder(vllm_config)

    def _decorate_cls_for_torch_compile(
        self, *args: Any, is_encoder: bool, **kwargs: Any
    ) -> None:
        # vLLM's Transformers backend would compile the encoder as a whole, and raises
        # where it cannot tell which dimensions vary.
        if not is_encoder:
            super()._decorate_cls_for_torch_compile(
                *args, is_encoder=is_encoder, **kwargs
            )


class _Module(nn.Module):
    """The first base: instances lie in memory as the stock class's do, which can so be
    exchanged for one of ours."""


def stock_class(architecture: str) -> type:
    """vLLM's own class of an architecture.

    Raises:
        KeyError: vLLM has none of that name.
    """
    module, name = _VLLM_MODELS[architecture]
    if not module.startswith("vllm."):
        module = f"vllm.model_executor.models.{module}"
    found: type = getattr(importlib.import_module(module), name)
    return found


def __getattr__(name: str) -> Any:
    name = name.partition("@")[0]
    architecture = name.removeprefix(_PREFIX)
    if architecture == name or architecture not in _VLLM_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _compiled(stock_class(architecture), name)


def _compiled(stock: type, name: str) -> type:
    # vLLM's drafters know classes by `__name__`, and pickle by `__qualname__`.
    attributes = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"vLLM's {stock.__name__} with its encoder compiled.",
    }
    bases = (_Module, AutoCompiledEncoder, stock)
    made = type(stock.__name__, bases, attributes)
    return globals().setdefault(name, made)
