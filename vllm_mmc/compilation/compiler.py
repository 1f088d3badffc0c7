# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The one place that calls `torch.compile`.

Of Dynamo's guards those on the arguments and on sizes are kept: they say which calls a
graph is right for. Those on the module are dropped: the comparison of structures
stands for them, and the graph serves other modules.
"""

import contextlib
import functools
import re
import threading
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from vllm.compilation.counter import compilation_counter
from vllm.compilation.monitor import monitor_torch_compile
from vllm.config import CompilationConfig, CUDAGraphMode, VllmConfig
from vllm.config.compilation import DynamicShapesType
from vllm.sequence import IntermediateTensors

from vllm_mmc.compat import output_hooks, symbols
from vllm_mmc.compilation.arguments import Arguments, Signature, canonical
from vllm_mmc.compilation.region import Dims, RegionSpec
from vllm_mmc.sizes import buckets

CompiledFn = Callable[..., Any]

_STRIDES = "vllm.env_override:_apply_constrain_to_fx_strides_patch"
_UNSUPPORTED = (
    "torch._dynamo.guards:CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES"
)

LOCK = threading.RLock()
"""Held while compiling or loading, which changes the environment, vLLM's configuration
and Dynamo's, all of which the whole process shares."""


class Graph(NamedTuple):
    """One compiled function and the calls that it is right for.

    Attributes:
        accepts: Takes name -> value of the arguments, self included.
        run: Takes the module, then the arguments.
    """

    accepts: Callable[[dict[str, Any]], bool]
    run: CompiledFn


def graph_of(compiled: Any) -> Graph:
    """The graph of what `aot_compile` returned, or `load_compiled_function`."""
    compiled.disable_guard_check()
    return Graph(compiled._artifacts.guard_manager.root.check, compiled.fn)


class ArgumentGuardError(RuntimeError):
    """A graph depends on an argument in a way that no guard can be kept for."""


def compile_region(
    spec: RegionSpec,
    module: nn.Module,
    arguments: Arguments,
    vllm_config: VllmConfig,
    on_guards: Callable[[Sequence[Any]], None],
    unbacked: bool = True,
) -> tuple[Graph, Any]:
    """Compile for arguments in canonical form. Call it under inference mode.

    An encoder never trains. Traced with gradients, as vLLM's CPU worker profiles, a
    graph saves tensors that inference mode refuses to save.

    Args:
        on_guards: Is shown all of Dynamo's guards, as guard filter entries.
        unbacked: Whether the spec's `unbacked_dims` are traced without an example.

    Returns:
        The graph, and what can be saved.

    Raises:
        ArgumentGuardError: see there.
        Exception: What Dynamo or the backend raises.
    """
    config = vllm_config.compilation_config
    backend = config.init_backend(
        vllm_config, prefix=spec.name, is_encoder=spec.is_encoder
    )
    traced = spec.traced(module)
    names = Signature(traced.__func__, follow_wrapped=False).names

    def keep(guards: Sequence[Any]) -> list[bool]:
        on_guards(guards)
        return [_is_kept(guard, names) for guard in guards]

    options: dict[str, Any] = {"guard_filter_fn": keep}
    if backend == "inductor":
        options |= config.inductor_compile_config
    dynamic_shapes = config.dynamic_shapes_config
    if (constrain_strides := symbols.find(_STRIDES)) is not None:
        constrain_strides()
    with (
        torch._dynamo.config.patch(
            enable_aot_compile=True, enable_cpp_symbolic_shape_guards=False
        ),
        torch.compiler.config.patch(
            dynamic_sources=",".join(map(_source_pattern, spec.dynamic_ints))
        ),
        # Dimensions that happen to have equal sizes in the first call must not
        # become one symbol: each other size would be a further graph.
        torch.fx.experimental._config.patch(
            use_duck_shape=False,
            # Nor shall a dimension that has not been seen as 1 be told from 1.
            backed_size_oblivious=(spec.surveyed and unbacked)
            or dynamic_shapes.type == DynamicShapesType.BACKED_SIZE_OBLIVIOUS,
        ),
        torch._inductor.config.patch(
            assume_32bit_indexing=dynamic_shapes.assume_32_bit_indexing
        ),
        monitor_torch_compile(vllm_config, is_encoder=spec.is_encoder, tag=spec.name),
        output_hooks.taken_off(module) if spec.surveyed else contextlib.nullcontext(),
    ):
        signature = Signature(spec.forward(module).__func__)
        args, kwargs = _marked(spec, signature, arguments, config, unbacked)
        compile_ = functools.partial(
            torch.compile,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            options=options,
        )
        if config.backend == "eager":
            # It makes nothing that could be compiled ahead of time.
            return _traced_only(compile_, traced.__func__, module, args, kwargs), None
        compiled = compile_(traced).aot_compile((args, kwargs))
    compilation_counter.num_aot_compiles += 1
    return graph_of(compiled), compiled


def _traced_only(
    compile_: Callable[..., CompiledFn],
    function: Any,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Graph:
    """The graph of a backend that runs what was traced."""
    copied = _copy(function)
    compiled = compile_(copied)
    compiled(module, *args, **kwargs)
    (entry,) = torch._dynamo.eval_frame._debug_get_cache_entry_list(copied.__code__)

    def run(*args: Any, **kwargs: Any) -> Any:
        # The guards have been checked; Dynamo would check them again, and recompile.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return compiled(*args, **kwargs)

    return Graph(entry.guard_manager.root.check, run)


_NOT_SAVED = frozenset(symbols.find(_UNSUPPORTED) or {"WEAKREF_ALIVE"})


def _is_kept(guard: Any, arguments: Sequence[str]) -> bool:
    if guard.guard_type == "SHAPE_ENV":
        return True
    if guard.is_global or re.split(r"\W", guard.name)[0] not in arguments:
        return False
    if unsaved := _NOT_SAVED & {guard.guard_type, *guard.derived_guard_types}:
        if unsaved == {"WEAKREF_ALIVE"}:  # that its first example is still alive
            return False
        raise ArgumentGuardError(
            f"forward depends on which object {guard.name} is ({guard.guard_type}): "
            "pass tensors, numbers, strings and containers of them"
        )
    return True


def _source_pattern(path: str) -> str:
    name, *rest = re.split(r"(?=[.\[])", path, maxsplit=1)
    return re.escape(f"L['{name}']" + "".join(rest))


def check_marks(spec: RegionSpec, signature: Signature, arguments: Arguments) -> None:
    """Raises ValueError if a dimension is marked on what has none."""
    for name, arg in signature.given(arguments).items():
        dims = spec.dynamic_dims.get(name)
        marked = isinstance(arg, (torch.Tensor, IntermediateTensors, type(None)))
        if dims and not marked and not spec.surveyed:
            raise ValueError(
                f"Unsupported dynamic dimensions {list(dims)} for argument {name} "
                f"with type {type(arg)}."
            )


def _marked(
    spec: RegionSpec,
    signature: Signature,
    arguments: Arguments,
    config: CompilationConfig,
    unbacked: bool,
) -> Arguments:
    """Views of the arguments, with the dimensions that vary marked on them."""
    bounds = buckets.current()
    leading = next(iter(spec.dynamic_dims), None)
    all_unbacked = config.dynamic_shapes_config.type == DynamicShapesType.UNBACKED
    views: dict[int, torch.Tensor] = {}

    def marked(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        # One tensor that is given for two arguments stays one.
        view = views.get(id(leaf))
        if view is None:
            view = views[id(leaf)] = canonical(leaf)
        _mark(
            view,
            dims=spec.dynamic_dims.get(path, {}),
            unbacked_dims=spec.unbacked_dims.get(path, ()) if unbacked else (),
            all_unbacked=all_unbacked,
            bounds=bounds,
            leading=path == leading,
            surveyed=spec.surveyed,
        )
        return view

    return signature.map_leaves(marked, arguments)


def _mark(
    tensor: torch.Tensor,
    *,
    dims: Dims,
    unbacked_dims: Sequence[int],
    all_unbacked: bool,
    bounds: buckets.TokenRange | None,
    leading: bool,
    surveyed: bool,
) -> None:
    dims = {d % tensor.ndim: shape_id for d, shape_id in dims.items()}
    never_backed = {d % tensor.ndim for d in unbacked_dims}
    for dim, shape_id in (dims | {d: dims.get(d) for d in never_backed}).items():
        span = bounds.range if bounds and tensor.size(dim) == bounds.tokens else None
        if span is not None and span[0] == span[1]:
            continue  # a graph for one size: a constant
        if all_unbacked or dim in never_backed:
            torch._dynamo.decorators.mark_unbacked(
                tensor, dim, hint_override=tensor.size(dim), shape_id=shape_id
            )
        elif surveyed:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        elif span is not None and leading:
            torch._dynamo.mark_dynamic(tensor, dim, min=max(span[0], 2), max=span[1])
        else:
            torch._dynamo.mark_dynamic(tensor, dim)


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


@contextlib.contextmanager
def encoder_compilation_config(
    config: CompilationConfig, work_dir: Path
) -> Generator[None, None, None]:
    """What vLLM's backend shall see while it compiles or loads one of our regions.

    - The decoder's `compile_sizes` would replace every symbol by one size, and its
      ranges would compile each graph several times (see `sizes` for ours).
    - Piecewise CUDA graphs are kept by batch descriptor: shared by all instances,
      they would replay the leader's weights. (Encoder CUDA graphs, which capture a
      whole forward, are not affected.)
    - The backend's own directory is shared by all it compiles, under keys that do
      not know the structure: each of our artifacts gets its own.
    """
    view: Mapping[str, Any] = {
        "compile_sizes": [],
        "compile_ranges_endpoints": (config.compile_ranges_endpoints or [])[-1:],
        "cudagraph_mode": CUDAGraphMode.NONE,
        "cache_dir": str(work_dir / "backend"),
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
