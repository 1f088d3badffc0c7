# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`support_torch_compile` with vLLM's meaning, compiling each structure once."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, overload

import torch
import torch.nn as nn
from torch.compiler import is_compiling
from vllm.compilation import backends
from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import (
    ignore_torch_compile,
    should_torch_compile_mm_encoder,
)
from vllm.config import CompilationMode, VllmConfig, get_current_vllm_config
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.logger import init_logger
from vllm.sequence import IntermediateTensors

from vllm_mmc.compat import symbols
from vllm_mmc.compilation.region import RegionSpec, ShapeInvariants
from vllm_mmc.compilation.shared_graph import shared_graph
from vllm_mmc.settings import Settings

__all__ = [
    "ignore_torch_compile",
    "set_model_tag",
    "should_torch_compile_mm_encoder",
    "support_torch_compile",
]

logger = init_logger(__name__)

DynamicArgDims: TypeAlias = Mapping[str, int | Sequence[int] | Mapping[int, str]]
EnableIf: TypeAlias = Callable[[VllmConfig], bool]
_C = TypeVar("_C", bound=type[nn.Module])

_TENSOR_ANNOTATIONS = (
    torch.Tensor,
    torch.Tensor | None,
    torch.FloatTensor,
    torch.FloatTensor | None,
    IntermediateTensors,
    IntermediateTensors | None,
)


@overload
def support_torch_compile(cls: _C) -> _C: ...


@overload
def support_torch_compile(
    *,
    dynamic_arg_dims: DynamicArgDims | None = None,
    mark_unbacked_dims: Mapping[str, int | Sequence[int]] | None = None,
    enable_if: EnableIf | None = None,
    is_encoder: bool = False,
    use_aot_compile: bool = True,
    shape_invariants: ShapeInvariants | None = None,
) -> Callable[[_C], _C]: ...


def support_torch_compile(
    cls: _C | None = None,
    *,
    dynamic_arg_dims: DynamicArgDims | None = None,
    mark_unbacked_dims: Mapping[str, int | Sequence[int]] | None = None,
    enable_if: EnableIf | None = None,
    is_encoder: bool = False,
    use_aot_compile: bool = True,
    shape_invariants: ShapeInvariants | None = None,
) -> Callable[[_C], _C] | _C:
    """Compile `forward` of a class; instances of equal structure share the result.

    A superset of `vllm.compilation.decorators.support_torch_compile` (vLLM 0.31 to
    0.33): the arguments mean the same and bad ones raise the same errors.

    Args:
        dynamic_arg_dims: Argument of `forward` -> its dimensions that vary between
            calls: an int, a list of ints, or a dict of dimension -> shape id
            (dimensions with one shape id have one size; used with unbacked dynamic
            shapes). Negative dimensions count from the end. Without it, dimension
            0 of every argument annotated as a tensor or as `IntermediateTensors`.
        mark_unbacked_dims: Argument -> dimension(s) to trace without an example
            size: the graph is not specialised on 0 or 1, whatever the first call.
        enable_if: Decides from the `VllmConfig` whether to compile at all.
        is_encoder: The class is part of a multimodal encoder.
        use_aot_compile: False keeps nothing of this class in the compile cache.
        shape_invariants: Takes the arguments of `forward` (without self) and states
            with `torch._check` how their sizes are related. It is compiled in before
            `forward`, and checked at every call: a violation is a ValueError.

    Raises:
        TypeError: The class has no `forward`.
        ValueError: No dynamic dimension is known, or an argument named here is not
            an argument of `forward`.
    """

    def decorate(cls: _C) -> _C:
        if not hasattr(cls, "forward"):
            raise TypeError("decorated class should have a forward method.")
        parameters = inspect.signature(cls.forward).parameters
        dims = dynamic_arg_dims
        if dims is None:
            dims = {
                name: 0
                for name, parameter in parameters.items()
                if parameter.annotation in _TENSOR_ANNOTATIONS
            }
        if not dims:
            raise ValueError(
                f"No dynamic dimensions found in the forward method of {cls}. "
                "Please provide dynamic_arg_dims explicitly."
            )
        for name in (*dims, *(mark_unbacked_dims or ())):
            if name not in parameters:
                raise ValueError(
                    f"Argument {name} not found in the forward method of {cls}"
                )
        spec = RegionSpec(
            name=cls.__name__,
            dynamic_dims={name: _dims(d) for name, d in dims.items()},
            unbacked_dims={
                name: list(_dims(d)) for name, d in (mark_unbacked_dims or {}).items()
            },
            is_encoder=is_encoder,
            use_aot_compile=use_aot_compile,
            shape_invariants=shape_invariants,
        )
        return _compile_class(cls, spec, enable_if)

    return decorate if cls is None else decorate(cls)


def _dims(dims: int | Sequence[int] | Mapping[int, str]) -> dict[int, str | None]:
    if isinstance(dims, int):
        return {dims: None}
    if isinstance(dims, Mapping):
        return dict(dims)
    return dict.fromkeys(dims)


_SPEC = "_mmc_region_spec"
_IGNORED = symbols.IGNORE_COMPILE.find() or "_ignore_compile_vllm"


def _own_spec(cls: type) -> tuple[RegionSpec, EnableIf | None] | None:
    """The nearest decoration of `cls` or a parent; None if ignored in between."""
    for base in cls.__mro__:
        if base.__dict__.get(_IGNORED) is True:
            return None
        if _SPEC in base.__dict__:
            return base.__dict__[_SPEC]
    return None


def is_compiled_class(cls: type[nn.Module]) -> bool:
    """Whether this package's decorator compiles instances of `cls`."""
    return _own_spec(cls) is not None


def init_region(module: nn.Module, vllm_config: VllmConfig) -> None:
    """What the constructor of a decorated class does after the stock constructor.

    Args:
        module: Of any class; one that is not decorated stays as it is.
        vllm_config: The configuration that the module was built with.

    Raises:
        ValueError: A setting has a value that is not allowed.
    """
    if (own := _own_spec(type(module))) is not None:
        _init_region(module, vllm_config, own[1])


def _init_region(
    module: nn.Module, vllm_config: VllmConfig, enable_if: EnableIf | None
) -> None:
    config = vllm_config.compilation_config
    module.vllm_config = vllm_config
    module.compilation_config = config
    module.do_not_compile = (
        config.mode in (CompilationMode.NONE, CompilationMode.STOCK_TORCH_COMPILE)
        or _own_spec(type(module)) is None
        or not (enable_if is None or enable_if(vllm_config))
    )
    module._mmc_shared_graph = None
    module._mmc_tag = _current_tag()
    Settings.of(vllm_config)  # a setting that is not allowed is an error here


def _tagged(spec: RegionSpec, tag: str | None, is_encoder: bool) -> RegionSpec:
    """What vLLM's `set_model_tag` said, if the module was built inside of one."""
    if tag in (None, _NO_TAG):
        return spec
    return dataclasses.replace(
        spec, name=f"{tag}.{spec.name}", is_encoder=spec.is_encoder or is_encoder
    )


def _current_tag() -> tuple[str | None, bool]:
    """The tag of the `set_model_tag` that we are in, and whether it is an encoder's."""
    if not symbols.usable(symbols.MODEL_TAG, symbols.MODEL_IS_ENCODER):
        return None, False
    return symbols.MODEL_TAG.of(backends), symbols.MODEL_IS_ENCODER.of(backends)


_NO_TAG, _ = _current_tag()


def _compile_class(cls: _C, spec: RegionSpec, enable_if: EnableIf | None) -> _C:
    if _SPEC in cls.__dict__:
        return cls
    old_init = cls.__init__
    init_parameters = inspect.signature(old_init).parameters

    def __init__(
        self: nn.Module,
        *args: Any,
        vllm_config: VllmConfig | None = None,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        if vllm_config is None:
            vllm_config = get_current_vllm_config()
        _check_positional(type(self), init_parameters, args)
        if "vllm_config" in init_parameters:
            kwargs["vllm_config"] = vllm_config
        if "prefix" in init_parameters:
            kwargs["prefix"] = prefix
        old_init(self, *args, **kwargs)
        _init_region(self, vllm_config, enable_if)

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.do_not_compile or is_compiling():
            return self.forward(*args, **kwargs)
        if is_forward_context_available() and get_forward_context().skip_compiled:
            return self.forward(*args, **kwargs)
        shared = self._mmc_shared_graph
        if shared is None:
            # At the first call, when weights are loaded and post-processed.
            shared = self._mmc_shared_graph = shared_graph(
                self, _tagged(spec, *self._mmc_tag), self.vllm_config
            )
        return shared.call(self, args, kwargs, self.vllm_config)

    setattr(cls, _SPEC, (spec, enable_if))
    if spec.shape_invariants is not None:
        cls._mmc_shape_invariants = staticmethod(spec.shape_invariants)
    # Stop a base class that vLLM's decorator compiles from compiling this class, too.
    # Any true value does that. Only True, which `ignore_torch_compile` sets, makes our
    # decorator skip the class as well.
    setattr(cls, _IGNORED, "compiled by vllm_mmc")
    cls.__init__ = __init__
    cls.__call__ = __call__
    return cls


def _check_positional(
    cls: type, parameters: Mapping[str, inspect.Parameter], args: tuple[Any, ...]
) -> None:
    for arg, parameter in zip(args, list(parameters.values())[1:], strict=False):
        annotation = parameter.annotation
        try:
            fits = annotation is inspect.Parameter.empty or isinstance(arg, annotation)
        except TypeError:  # an annotation that isinstance does not know
            continue
        if not fits:
            init = f"'{cls.__name__}.__init__'"
            raise TypeError(
                f"{init} received a positional argument of type "
                f"'{type(arg).__name__}', but no parameter of that type was found in "
                f"the method signature. Please either annotate {init} or pass it as a "
                "keyword argument."
            )
