# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile each structure once: the leader compiles, followers reuse its function.

The compiled function takes the module as its first argument and reads parameters
from it at run time, so one function serves every module of equal structure.
"""

import contextlib
import functools
import inspect
import re
import threading
import time
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch._dynamo.utils import compilation_time_metrics
from vllm.compilation.counter import compilation_counter
from vllm.compilation.monitor import monitor_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    CUDAGraphMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.config.compilation import DynamicShapesType
from vllm.env_override import _apply_constrain_to_fx_strides_patch
from vllm.logger import init_logger
from vllm.sequence import IntermediateTensors

from vllm_mmc import metrics
from vllm_mmc.compat import garbage, inductor_threads
from vllm_mmc.compilation import cache, errors, outside, parity
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.structure import IDENTITY_ATTRS, Structure, structure_of
from vllm_mmc.sizes import buckets as shapes

logger = init_logger(__name__)

Dims = Mapping[int, str | None]
"""Dimension (negative counts from the end) -> shape id, or None."""
CompiledFn = Callable[..., Any]
ShapeInvariants = Callable[..., None]


@dataclass(frozen=True)
class RegionSpec:
    """What the decorator was told about a class.

    Attributes:
        name: The class's name: cache prefix and log tag.
        dynamic_dims: Argument name -> dimensions that vary between calls.
        unbacked_dims: Argument name -> dimensions to trace without an example size,
            so that no graph is specialised on 0 or 1.
        is_encoder: Part of a multimodal encoder (vLLM's meaning: the compile range
            is open-ended).
        arguments: Names of the arguments of `forward`, without self.
        shape_invariants: Takes the arguments of `forward` and states with
            `torch._check` what holds of their sizes.
    """

    name: str
    dynamic_dims: Mapping[str, Dims]
    unbacked_dims: Mapping[str, Sequence[int]]
    is_encoder: bool
    arguments: tuple[str, ...]
    shape_invariants: ShapeInvariants | None = field(default=None, repr=False)

    def traced(self, module: nn.Module) -> types.MethodType:
        """What is compiled for `module`."""
        if self.shape_invariants is None:
            return module.forward
        return types.MethodType(_invariants_and_forward, module)

    def check_invariants(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.shape_invariants is None:
            return
        try:
            self.shape_invariants(*args, **kwargs)
        except RuntimeError as error:
            given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
            sizes = ", ".join(
                f"{name} {list(arg.shape)}"
                for name, arg in given.items()
                if isinstance(arg, torch.Tensor)
            )
            raise ValueError(
                f"{self.name}: the sizes of its arguments violate shape_invariants: "
                f"{sizes}"
            ) from error

    def varying_dims(self, argument: str, ndim: int) -> set[int]:
        dims = (
            *self.dynamic_dims.get(argument, ()),
            *self.unbacked_dims.get(argument, ()),
        )
        return {d % ndim for d in dims} if ndim else set()


def _invariants_and_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Read from the class, as the decorator keeps it: what is traced must not depend
    # on this function's closure, which artifacts do not keep.
    self._mmc_shape_invariants(*args, **kwargs)
    return self.forward(*args, **kwargs)


class CompiledStructure:
    """One structure, with one compiled function per range and call signature.

    A signature is what a graph takes for granted of its arguments: types, dtypes,
    devices, layouts, sizes that are not marked dynamic, and plain values. A second
    signature compiles a second graph, where a graph without guards would be wrong.
    """

    def __init__(self, spec: RegionSpec, structure: Structure) -> None:
        self.spec = spec
        self.structure = structure
        self.shareable = True
        self.eager: str | None = None
        """Why all of it runs eager, if it does."""
        self.failure: str | None = None
        """Why a graph of it could not be compiled, if one could not."""
        self._compiled: dict[tuple[Any, ...], CompiledFn] = {}
        self._compared: set[tuple[int, int]] = set()
        self._scope: dict[str, Any] = {}
        self._outside: dict[str, str] = {}
        self._lock = threading.Lock()

    def fits(self) -> bool:
        """May another instance of this structure use these graphs now?"""
        return self.shareable and not outside.changed(self._outside, self._scope)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.spec.check_invariants(args, kwargs)
        bounds = shapes.current()
        signature = (bounds and bounds.range, *self._signature(args, kwargs, bounds))
        compiled = self._compiled.get(signature)
        if compiled is None:
            with self._lock:
                compiled = self._compiled.get(signature)
                if compiled is None:
                    compiled = self._obtain(module, args, kwargs, signature)
                    self._compiled[signature] = compiled
                    metrics.publish(asdict(counters))
        elif module._mmc_settings.parity_check != "all":
            return compiled(module, *args, **kwargs)
        return self._compared_with_eager(compiled, module, args, kwargs)

    def _compared_with_eager(
        self,
        compiled: CompiledFn,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call `compiled`, and check its first results as `parity_check` says."""
        key = id(module), id(compiled)
        if (
            compiled is _eager
            or module._mmc_settings.parity_check == "off"
            or key in self._compared
        ):
            return compiled(module, *args, **kwargs)
        self._compared.add(key)
        counters.parity_checks += 1
        output, eager, difference = parity.compare(compiled, module, args, kwargs)
        if difference is None:
            return output
        counters.parity_failures += self.eager is None
        self._give_up(f"compiled and eager differ: {difference}")
        return eager

    def _give_up(self, reason: str) -> None:
        if self.eager is None:
            self.eager = reason
            logger.error("%s runs eager from now on: %s", self.spec.name, reason)
        for signature in self._compiled:
            self._compiled[signature] = _eager
        metrics.publish(asdict(counters))

    def _signature(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        bounds: shapes.Bounds | None,
    ) -> tuple[Any, ...]:
        spec = self.spec
        # In a graph for one size, dimensions of that size are constants.
        size = bounds.tokens if bounds is not None and bounds.exact else None
        return (
            *(
                _trait(spec, n, a, size)
                for n, a in zip(spec.arguments, args, strict=False)
            ),
            *((name, _trait(spec, name, arg, size)) for name, arg in kwargs.items()),
        )

    def _obtain(
        self,
        leader: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        signature: tuple[Any, ...],
    ) -> CompiledFn:
        if self.eager is not None:
            return _eager
        vllm_config: VllmConfig = leader.vllm_config
        marked = self._mark_dims(leader, args, kwargs, vllm_config.compilation_config)
        entry = cache.entry_for(self.spec, self.structure, signature, vllm_config)
        scope = self._scope = self.spec.traced(leader).__func__.__globals__
        if cache.explain is not None:
            cache.explain(entry, scope)
            return _eager
        try:
            with (
                set_current_vllm_config(vllm_config),
                cache.workplace(entry) as place,
                _encoder_view(vllm_config.compilation_config, place),
            ):
                start = time.perf_counter()
                loaded = cache.load(entry, place, scope)
                counters.load_seconds += time.perf_counter() - start
                if loaded is not None:
                    counters.artifact_loads += 1
                    self._outside |= cache.outside_of(place)
                    return loaded
                counters.artifact_misses += entry.enabled
                compiled = self._compile_timed(leader, *marked, vllm_config)
                if self.shareable:
                    cache.save(entry, compiled, place, self._outside)
                counters.recompiles += any(
                    known[0] == signature[0] for known in self._compiled
                )
                return compiled
        except Exception as error:
            return self._fall_back(leader, error)

    def _fall_back(self, leader: nn.Module, error: Exception) -> CompiledFn:
        if leader._mmc_settings.on_error == "raise":
            raise error
        # For this signature only: another one may have nothing wrong with it.
        counters.fallbacks += 1
        self.failure = f"it cannot be compiled. {errors.explain(error)}"
        logger.warning("%s runs eager: %s", self.spec.name, self.failure)
        return _eager

    def _compile_timed(
        self,
        leader: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        vllm_config: VllmConfig,
    ) -> CompiledFn:
        start, backend = time.perf_counter(), _seconds_of_backend()
        with inductor_threads.more(), garbage.kept():
            compiled = self._compile(leader, args, kwargs, vllm_config)
        seconds = time.perf_counter() - start
        backend = _seconds_of_backend() - backend
        counters.graphs += 1
        counters.dynamo_seconds += seconds - backend
        counters.inductor_seconds += backend
        if vllm_config.compilation_config.mode != CompilationMode.VLLM_COMPILE:
            # vLLM's monitor counts and reports these seconds in its own mode only.
            vllm_config.compilation_config.encoder_compilation_time += seconds
        logger.info(
            "[%s] compiled in %.2f s (structure %s)",
            self.spec.name,
            seconds,
            self.structure.digest[:12],
        )
        return compiled

    def _compile(
        self,
        leader: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        vllm_config: VllmConfig,
    ) -> CompiledFn:
        """Compile for arguments whose varying dimensions are marked."""
        config = vllm_config.compilation_config
        backend = config.init_backend(
            vllm_config, prefix=self.spec.name, is_encoder=self.spec.is_encoder
        )
        options: dict[str, Any] = {"guard_filter_fn": self._drop_guards}
        if backend == "inductor":
            options |= config.inductor_compile_config
        _apply_constrain_to_fx_strides_patch()
        with (
            # An encoder never trains. Traced with gradients, as vLLM's CPU worker
            # profiles, a graph saves tensors that inference mode refuses to save.
            torch.no_grad(),
            torch._dynamo.config.patch(
                enable_aot_compile=True, enable_cpp_symbolic_shape_guards=False
            ),
            # With guards dropped, dimensions that happen to have equal sizes in the
            # first call must not become one symbol.
            torch.fx.experimental._config.patch(
                use_duck_shape=False,
                backed_size_oblivious=config.dynamic_shapes_config.type
                == DynamicShapesType.BACKED_SIZE_OBLIVIOUS,
            ),
            torch._inductor.config.patch(
                assume_32bit_indexing=config.dynamic_shapes_config.assume_32_bit_indexing
            ),
            monitor_torch_compile(
                vllm_config, is_encoder=self.spec.is_encoder, tag=self.spec.name
            ),
        ):
            forward = self.spec.traced(leader)
            if config.backend == "eager":
                # It makes nothing that could be compiled ahead of time.
                compiled = torch.compile(
                    _copy(forward.__func__),
                    fullgraph=True,
                    dynamic=False,
                    backend=backend,
                    options=options,
                )
                compiled(leader, *args, **kwargs)
                return compiled
            compiled = torch.compile(
                forward,
                fullgraph=True,
                dynamic=False,
                backend=backend,
                options=options,
            ).aot_compile((args, kwargs))
        compiled.disable_guard_check()
        compilation_counter.num_aot_compiles += 1
        return compiled

    def _drop_guards(self, guards: Sequence[Any]) -> list[bool]:
        """Drop all guards, as vLLM does, but note what the graph took for granted."""
        self._outside |= outside.values(guards, self._scope)
        if self.shareable and any(_READS_IDENTITY.search(g.name) for g in guards):
            self.shareable = False
            logger.warning_once(
                "%s reads its own prefix or layer name in forward: each instance is "
                "compiled by itself.",
                self.spec.name,
            )
        return [False] * len(guards)

    def _mark_dims(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        config: Any,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Views of the arguments, with the dimensions that vary marked on them."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bounds = shapes.current()
        leading = next(iter(self.spec.dynamic_dims))
        unbacked = config.dynamic_shapes_config.type == DynamicShapesType.UNBACKED
        views: dict[int, torch.Tensor] = {}

        def view(tensor: torch.Tensor) -> torch.Tensor:
            return views.setdefault(id(tensor), tensor.detach())

        for name, arg in bound.arguments.items():
            dims = self.spec.dynamic_dims.get(name, {})
            mark = functools.partial(
                _mark,
                dims=dims,
                unbacked_dims=self.spec.unbacked_dims.get(name, ()),
                unbacked=unbacked,
                bounds=bounds,
                leading=name == leading,
            )
            if isinstance(arg, torch.Tensor):
                bound.arguments[name] = arg = view(arg)
                mark(arg)
            elif isinstance(arg, IntermediateTensors):
                tensors = {key: view(t) for key, t in arg.tensors.items()}
                bound.arguments[name] = IntermediateTensors(tensors)
                for tensor in tensors.values():
                    mark(tensor)
            elif dims and arg is not None:
                raise ValueError(
                    f"Unsupported dynamic dimensions {list(dims)} for argument {name} "
                    f"with type {type(arg)}."
                )
        return bound.args, bound.kwargs


_READS_IDENTITY = re.compile(rf"\b({'|'.join(sorted(IDENTITY_ATTRS))})\b")


def _mark(
    tensor: torch.Tensor,
    dims: Dims,
    unbacked_dims: Sequence[int],
    unbacked: bool,
    bounds: shapes.Bounds | None,
    leading: bool,
) -> None:
    dims = {d % tensor.ndim: shape_id for d, shape_id in dims.items()}
    never_backed = {d % tensor.ndim for d in unbacked_dims}
    for dim, shape_id in (dims | {d: dims.get(d) for d in never_backed}).items():
        span = bounds.range if bounds and tensor.size(dim) == bounds.tokens else None
        if span is not None and span[0] == span[1]:
            continue  # a constant, as `_trait` has it
        if unbacked or dim in never_backed:
            torch._dynamo.decorators.mark_unbacked(
                tensor, dim, hint_override=tensor.size(dim), shape_id=shape_id
            )
        elif span is not None and leading:
            torch._dynamo.mark_dynamic(tensor, dim, min=max(span[0], 2), max=span[1])
        else:
            torch._dynamo.mark_dynamic(tensor, dim)


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.forward(*args, **kwargs)


def _seconds_of_backend() -> float:
    return sum(compilation_time_metrics.get("create_aot_dispatcher_function", ()))


def _copy(function: Any) -> types.FunctionType:
    """A function of its own to Dynamo, which keeps graphs by code object."""
    copied = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _trait(spec: RegionSpec, name: str, arg: Any, constant: int | None = None) -> Any:
    if isinstance(arg, torch.Tensor):
        varying = spec.varying_dims(name, arg.ndim)
        return (
            arg.dtype,
            arg.device,
            tuple(
                -1 if d in varying and n != constant else n
                for d, n in enumerate(arg.shape)
            ),
            arg.is_contiguous() or arg.stride(),
        )
    trait = functools.partial(_trait, spec, name, constant=constant)
    if isinstance(arg, IntermediateTensors):
        return tuple((key, trait(t)) for key, t in arg.tensors.items())
    if arg is None or isinstance(arg, (bool, int, float, str)):
        return (type(arg), arg)
    if isinstance(arg, (list, tuple)):
        return tuple(trait(item) for item in arg)
    if isinstance(arg, dict):
        return tuple((key, trait(item)) for key, item in arg.items())
    return type(arg)


@contextlib.contextmanager
def _encoder_view(
    config: CompilationConfig, place: Path
) -> Generator[None, None, None]:
    """What vLLM's backend shall see while it compiles or loads one of our regions.

    - The decoder's `compile_sizes` would replace every symbol by one size, and its
      ranges would compile each graph several times (see `shapes` for ours).
    - Piecewise CUDA graphs are kept by batch descriptor: shared by all instances,
      they would replay the leader's weights. (Encoder CUDA graphs, which capture a
      whole forward, are not affected.)
    - The backend's own directory is shared by all it compiles, under keys that do
      not know the structure: each of our artifacts gets its own.
    """
    view = {
        "compile_sizes": [],
        "compile_ranges_endpoints": (config.compile_ranges_endpoints or [])[-1:],
        "cudagraph_mode": CUDAGraphMode.NONE,
        "cache_dir": str(place / "backend"),
        "traced_files": set(),
    }
    before = {name: getattr(config, name) for name in (*view, "local_cache_dir")}
    for name, value in view.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


_structures: dict[tuple[Any, ...], CompiledStructure] = {}
_structures_lock = threading.Lock()


def compiled_structure(module: nn.Module, spec: RegionSpec) -> CompiledStructure:
    """The compiled structure that `module` belongs to, made if it is the leader.

    Structures are shared through the whole process: engines of equal configuration
    share them too.
    """
    structure = structure_of(module)
    key = (spec.name, structure.digest, cache.environment_digest(module.vllm_config))
    with _structures_lock:
        found = _structures.get(key)
        if found is not None and found.fits():
            counters.followers += 1
            return found
        counters.structures += 1
        compilation_counter.num_models_seen += 1
        made = CompiledStructure(spec, structure)
        if found is None or found.shareable:
            _structures[key] = made
        return made


def structures() -> list[CompiledStructure]:
    """All that this process has met, in that order."""
    return list(_structures.values())


@contextlib.contextmanager
def stock_compile_off(vllm_config: VllmConfig) -> Generator[None, None, None]:
    """Build vLLM's encoder modules uncompiled; ours take their place afterwards."""
    config = vllm_config.compilation_config
    requested = config.compile_mm_encoder
    config.compile_mm_encoder = False
    try:
        yield
    finally:
        config.compile_mm_encoder = requested
