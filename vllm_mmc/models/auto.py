# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`CompiledX` for each multimodal class X of vLLM.

A row of the catalogue names the class, or a `mixin` of which the class is made. Any
other encoder is surveyed, after the classes that the catalogue's `REWRITES` name have
been exchanged.

The classes are made when they are asked for: vLLM's registry, its inspection process
and its workers do `getattr(module, name)`. vLLM stores facts about a class under the
class's name. What follows "@" in the name tells classes apart: the versions of vLLM and
of this package, or for a class of another plugin `module+Class+digest`, with the digest
of the module's file and of both versions.
"""

import importlib
from contextlib import nullcontext
from typing import Any

import torch.nn as nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import supports_multimodal

from vllm_mmc.catalog import CATALOG, REWRITES
from vllm_mmc.compat import symbols
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.decorators import should_torch_compile_mm_encoder
from vllm_mmc.encoder.install import EncoderPlan, in_place_of
from vllm_mmc.encoder.interfaces import SupportsCompiledEncoder

logger = init_logger(__name__)

_PREFIX = "Compiled"
_ROWS = {entry.compiled_architecture: entry for entry in CATALOG}


class AutoCompiledEncoder(SupportsCompiledEncoder):
    """Surveys the encoder of a stock class before the first request."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        if super().__new__ is object.__new__:
            return super().__new__(cls)
        # The stock class makes an instance of another one, by the checkpoint's version.
        switch = should_torch_compile_mm_encoder(vllm_config)
        with stock_compile_off(vllm_config) if switch else nullcontext():
            made = super().__new__(cls, vllm_config=vllm_config, prefix=prefix)
        if not isinstance(made, cls):
            ours = _surveyed(type(made), _PREFIX + type(made).__name__)
            made = in_place_of(made, ours)
            made.install_unmarked(vllm_config)
        return made

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.install_unmarked(vllm_config)

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


def stock_class(architecture: str) -> Any:
    """vLLM's own class of an architecture.

    Raises:
        KeyError: vLLM has none of that name.
        AbsentSymbolError: vLLM keeps its table of models in another form.
    """
    module, name = symbols.VLLM_MODELS.need()[architecture]
    if not module.startswith("vllm."):
        module = f"vllm.model_executor.models.{module}"
    return _imported(f"{module}:{name}")


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> Any:
    name, _, origin = name.partition("@")
    architecture = name.removeprefix(_PREFIX)
    if name in globals():
        return globals()[name]  # asked for with a suffix
    if (entry := _ROWS.get(name)) is not None:
        if entry.mixin is None:
            return _imported(entry.model)
        bases = (_imported(entry.mixin), stock_class(entry.architecture))
        return _made(name, name, bases)
    of_vllm = architecture in (symbols.VLLM_MODELS.find() or ())
    if architecture == name or not (of_vllm or "+" in origin):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "+" in origin:
        module, class_name, _ = origin.split("+")
        stock = _imported(f"{module}:{class_name}")
    else:
        stock = stock_class(architecture)
    if not supports_multimodal(stock):
        return stock  # for instance a stub, which raises an error on this platform
    return _surveyed(stock, name)


def _surveyed(stock: Any, name: str) -> Any:
    plan = EncoderPlan()
    if rewrites := REWRITES.get(name.removeprefix(_PREFIX)):
        try:
            plan = EncoderPlan(classes=_imported(rewrites))
        except ImportError as error:
            logger.warning_once(
                "%s is surveyed as it is: %s does not fit this vLLM (%s).",
                stock.__name__,
                rewrites,
                str(error),
            )
    # vLLM's drafters know classes by `__name__`.
    bases = (_Module, AutoCompiledEncoder, stock)
    return _made(name, stock.__name__, bases, encoder_plan=plan)


def _made(name: str, class_name: str, bases: tuple[Any, ...], **attributes: Any) -> Any:
    attributes |= {
        "__module__": __name__,
        "__qualname__": name,  # pickle looks for this name
        "__doc__": f"vLLM's {bases[-1].__name__} with its encoder compiled.",
    }
    return globals().setdefault(name, type(class_name, bases, attributes))
