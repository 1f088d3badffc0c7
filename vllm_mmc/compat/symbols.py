# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Private names of vLLM and PyTorch that the package does without if it must.

Each is looked up once. A release that lacks one gives None and a reason: whatever uses
the name steps aside, no import of ours fails, and no entry of the cache is blamed.
"""

import functools
import importlib
import logging
from typing import Any

logger = logging.getLogger(__name__)

WITHOUT = {
    "vllm.env_override:_apply_constrain_to_fx_strides_patch": (
        "PyTorch 2.11 may give an operator strides that it does not expect"
    ),
    "torch._dynamo.guards:CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES": (
        "a region that needs a guard which cannot be saved runs eager, and the message "
        "does not name the argument"
    ),
    "torch._dynamo.utils:compilation_time_metrics": (
        "all seconds of a compilation are counted as tracing"
    ),
    "torch._inductor.async_compile:AsyncCompile.use_process_pool": (
        "C++ kernels are compiled one after another"
    ),
    "torch._inductor.codecache:_precompile_header": (
        "a warm start may compile headers, in one to ten seconds"
    ),
    "torch._inductor.config:compile_threads": (
        "C++ kernels are compiled one after another"
    ),
    "torch._inductor.cpu_vec_isa:valid_vec_isa_list": (
        "each process tests the instruction sets again, in some seconds"
    ),
}
"""module:name -> what is so without it."""


def find(symbol: str) -> Any:
    """What a name in `WITHOUT` meant at first, or None, with one WARNING."""
    return _look_up(symbol)[0] if usable(symbol) else None


def usable(*symbols: str) -> bool:
    """Whether all of these are there; if not, a WARNING says so once."""
    if (reason := absent(*symbols)) is not None:
        _warn(reason)
    return reason is None


def absent(*symbols: str) -> str | None:
    """Why one of these cannot be used, in words; None if all can."""
    return next((why for s in symbols if (why := _look_up(s)[1]) is not None), None)


@functools.cache
def _look_up(symbol: str) -> tuple[Any, str | None]:
    module, _, path = symbol.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        return None, f"there is no {module}.{path} ({error}): {WITHOUT[symbol]}"
    return found, None


@functools.cache
def _warn(reason: str) -> None:
    logger.warning("In these releases of vLLM and PyTorch %s.", reason)
