# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`CompiledX` for each multimodal class X of vLLM without model code in this package.

A row of the catalogue with a `mixin` gets that mixin; any other encoder is surveyed.

The classes are made when they are asked for: vLLM's registry, its inspection process
and its workers do `getattr(module, name)`. A suffix after "@" is ignored: vLLM caches
facts about a class under the class's name, so the name contains vLLM's version.
"""

import importlib
from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.registry import _VLLM_MODELS

from vllm_mmc.catalog import CATALOG, CatalogEntry
from vllm_mmc.encoder.interfaces import SupportsCompiledEncoder

_PREFIX = "Compiled"
_ROWS = {entry.compiled_architecture: entry for entry in CATALOG if entry.mixin}


class AutoCompiledEncoder(SupportsCompiledEncoder):
    """Surveys the encoder of a stock class before the first request."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.mark_unmarked_encoder(vllm_config)


def stock_class(architecture: str) -> Any:
    """vLLM's own class of an architecture.

    Raises:
        KeyError: vLLM has none of that name.
    """
    module, name = _VLLM_MODELS[architecture]
    if not module.startswith("vllm."):
        module = f"vllm.model_executor.models.{module}"
    return getattr(importlib.import_module(module), name)


def _mixin(entry: CatalogEntry) -> Any:
    module, _, name = (entry.mixin or "").partition(":")
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> Any:
    name = name.partition("@")[0]
    architecture = name.removeprefix(_PREFIX)
    if (entry := _ROWS.get(name)) is not None:
        mixin, stock = _mixin(entry), stock_class(entry.architecture)
        class_name = name
    elif architecture != name and architecture in _VLLM_MODELS:
        mixin, stock = AutoCompiledEncoder, stock_class(architecture)
        class_name = stock.__name__  # vLLM's drafters know classes by `__name__`
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    attributes = {
        "__module__": __name__,
        "__qualname__": name,  # pickle looks for this name
        "__doc__": f"vLLM's {stock.__name__} with its encoder compiled.",
    }
    made = globals()[name] = type(class_name, (mixin, stock), attributes)
    return made
