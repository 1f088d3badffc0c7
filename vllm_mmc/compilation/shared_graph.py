# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile each structure once: the leader compiles, followers reuse its graphs.

The compiled function takes the module as its first argument and reads parameters
from it at run time, so one function serves every module of equal structure.
"""

import functools
import re
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict
from typing import Any

import torch
import torch.nn as nn
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.logger import init_logger

from vllm_mmc import metrics
from vllm_mmc.cache import store
from vllm_mmc.cache.entry import Entry, entry_for
from vllm_mmc.cache.key import environment_digest
from vllm_mmc.compat import dynamo, garbage, inductor_threads, symbols
from vllm_mmc.compat.capture import capturing
from vllm_mmc.compilation import captured_globals, compiler, errors, measure, parity
from vllm_mmc.compilation.arguments import (
    Arguments,
    Signature,
    canonical,
    contiguous,
    kind,
)
from vllm_mmc.compilation.compiler import CompiledFn, Graph, graph_of
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.region import RegionSpec
from vllm_mmc.compilation.structure import (
    IDENTITY_ATTRS,
    RANK_ATTRS,
    Structure,
    structure_of,
)
from vllm_mmc.compilation.time_limit import time_limit
from vllm_mmc.settings import Settings
from vllm_mmc.sizes import buckets

logger = init_logger(__name__)


class SharedGraph:
    """The graphs of one structure, for all of its instances.

    A call goes to the first graph whose guards accept the arguments. Where none does,
    a further graph is compiled, up to the setting `max_graphs`; beyond it new kinds of
    calls run eager.
    """

    def __init__(
        self,
        spec: RegionSpec,
        structure: Structure,
        settings: Settings,
        measures: bool = False,
    ) -> None:
        self.spec = spec
        self.structure = structure
        self.settings = settings
        self.parity_check = settings.parity_check
        if self.parity_check == "auto":
            self.parity_check = "first" if spec.surveyed else "off"
        self._has_invariants = spec.shape_invariants is not None
        self.measured: str | None = None
        """What a measurement has shown, if there was one."""
        self._measures = measures
        self._observes = measures or self.parity_check == "all"
        """Whether a known call is compared with eager, or noted for a measurement."""
        self.shareable = True
        self.of_rank = False
        """Whether a graph of it has read the rank of this process."""
        self.eager: str | None = None
        """Why all of it runs eager, if it does."""
        self.failure: str | None = None
        """Why a graph of it could not be compiled, if one could not."""
        self.unkept: str | None = None
        """Why the cache does not keep a graph of it, if it does not."""
        self._graphs: dict[buckets.Range | None, list[Graph]] = {}
        self._made: dict[buckets.Range | None, int] = {}
        self._failed: set[Any] = set()
        self._unbacked = True
        self._signature: Signature | None = None
        """Of `forward`, from the first call on."""
        self._frame: Signature | None = None
        """Of what is traced."""
        self._locals: Callable[..., dict[str, Any]] = dict
        """`locals` of that."""
        self._compared: set[tuple[int, int]] = set()
        self._scope: dict[str, Any] = {}
        self._captured: dict[str, str] = {}
        """Global variable that the graphs took for granted -> value."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of an encoder, made by copy or pickle, looks its graphs up again.
        return _none, ()

    def accepts_followers(self) -> bool:
        """May another instance of this structure use these graphs now?"""
        return self.shareable and captured_globals.same(self._captured, self._scope)

    def call(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        vllm_config: VllmConfig,
    ) -> Any:
        """Run `module` on its arguments, compiled where that is possible.

        Each layer of each request comes through here, and a known call goes no further:
        benchmarks/call_overhead.py says what it costs.
        """
        if self._has_invariants:
            self.spec.check_invariants(args, kwargs)
        bounds = buckets.current()
        span = None if bounds is None else bounds.range
        if graphs := self._graphs.get(span):
            given = module, *args
            f_locals = self._locals(*given, **kwargs)
            for accepts, run in graphs:
                if accepts(f_locals):
                    if self._observes:
                        return self._observed(run, module, (args, kwargs), span)
                    try:
                        return run(*given, **kwargs)
                    except Exception as error:
                        return self._rescued(error, run, module, (args, kwargs), span)
        if self.eager is not None:
            return self.spec.forward(module)(*args, **kwargs)
        return self._call_unknown(module, (args, kwargs), vllm_config, span)

    def _run(
        self,
        run: CompiledFn,
        module: nn.Module,
        arguments: Arguments,
        span: buckets.Range | None,
    ) -> Any:
        args, kwargs = arguments
        try:
            return run(module, *args, **kwargs)
        except Exception as error:
            return self._rescued(error, run, module, arguments, span)

    def _rescued(
        self,
        error: Exception,
        run: CompiledFn,
        module: nn.Module,
        arguments: Arguments,
        span: buckets.Range | None,
    ) -> Any:
        """The eager output of a call whose graph has raised `error`."""
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        # If eager raises too, it is the caller's error, and the graph is right.
        args, kwargs = arguments
        output = self.spec.forward(module)(*args, **kwargs)
        self._drop(run, error, arguments, span)
        return output

    def _drop(
        self,
        run: CompiledFn,
        error: Exception,
        arguments: Arguments,
        span: buckets.Range | None,
    ) -> None:
        """A graph that raises where eager does not is never used again."""
        graphs = self._graphs.get(span, [])
        self._graphs[span] = [graph for graph in graphs if graph.run is not run]
        counters.rescues += 1
        if not self._stop_unbacked():
            self._failed.add(self._failure_key(arguments, span))
            self.failure = f"its graph raised when it ran. {errors.explain(error)}"
        logger.warning(
            "%s: a graph raised an error where eager does not, and is not used again: "
            "%s: %s",
            self.spec.name,
            type(error).__name__,
            error,
        )
        metrics.publish(asdict(counters))

    def _stop_unbacked(self) -> bool:
        """Whether there is another way to compile, which is then the way."""
        # A survey guesses which dimensions can be 1; a decorator was told.
        possible = self.spec.surveyed and self._unbacked
        if possible:
            self._unbacked = False
        return possible

    # ------------------------------------------------------------ unknown calls

    def _call_unknown(
        self,
        module: nn.Module,
        arguments: Arguments,
        vllm_config: VllmConfig,
        span: buckets.Range | None,
    ) -> Any:
        if self._frame is None or self._signature is None:
            self._signature = Signature(self.spec.forward(module).__func__)
            self._frame = Signature(
                self.spec.traced(module).__func__, follow_wrapped=False
            )
            self._locals = self._frame.locals
        for given in (arguments, self._canonical(self._signature, arguments)):
            if (run := self._known(self._frame, module, given, span)) is not None:
                if self._observes:
                    return self._observed(run, module, given, span)
                return self._run(run, module, given, span)
        if capturing():
            logger.warning_once(
                "%s runs eager in a CUDA graph: a call of its kind did not come before "
                "the capture, and a capture compiles nothing.",
                self.spec.name,
            )
            args, kwargs = arguments
            return self.spec.forward(module)(*args, **kwargs)
        with compiler.LOCK:
            run = self._known(self._frame, module, given, span) or self._graph_for(
                self._signature, self._frame, module, given, vllm_config, span
            )
            metrics.publish(asdict(counters))
        if run is None:
            args, kwargs = arguments
            return self.spec.forward(module)(*args, **kwargs)
        return self._observed(run, module, given, span, first=True)

    def _canonical(self, signature: Signature, arguments: Arguments) -> Arguments:
        views: dict[int, torch.Tensor] = {}

        def tidy(path: str, leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            view = views.get(id(leaf))
            if view is None:
                dense = path in self.spec.contiguous
                view = canonical(contiguous(leaf) if dense else leaf)
                views[id(leaf)] = view
            return view

        return signature.map_leaves(tidy, arguments)

    def _known(
        self,
        frame: Signature,
        module: nn.Module,
        arguments: Arguments,
        span: buckets.Range | None,
    ) -> CompiledFn | None:
        args, kwargs = arguments
        f_locals = frame.locals(module, *args, **kwargs)
        with dynamo.modes_ignored():
            for accepts, run in self._graphs.get(span, ()):
                if accepts(f_locals):
                    return run
        return None

    def _graph_for(
        self,
        signature: Signature,
        frame: Signature,
        module: nn.Module,
        arguments: Arguments,
        vllm_config: VllmConfig,
        span: buckets.Range | None,
    ) -> CompiledFn | None:
        """Load or compile a graph for `arguments`; None if the call runs eager."""
        failure_key = self._failure_key(arguments, span)
        if self.eager is not None or failure_key in self._failed:
            return None
        compiler.check_marks(self.spec, signature, arguments)
        self._scope = self.spec.traced(module).__func__.__globals__
        graphs = self._graphs.setdefault(span, [])
        for number in range(self._made.get(span, 0), self.settings.max_graphs):
            entry = self._entry(span, number, vllm_config)
            try:
                graph = self._load_or_compile(
                    entry, module, arguments, vllm_config, bool(graphs)
                )
            except store.LookupsOnlyExplained:
                self._failed.add(failure_key)
                return None
            except Exception as error:
                self._fall_back(error)
                self._failed.add(failure_key)
                return None
            if not self.shareable:
                graph = _only_for(module, frame, graph)
            graphs.append(graph)
            self._made[span] = number + 1
            if (run := self._known(frame, module, arguments, span)) is not None:
                return run
        self.failure = (
            f"it has {self.settings.max_graphs} graphs (setting max_graphs), and the "
            "calls that none of them is for run eager"
        )
        logger.warning_once("%s: %s.", self.spec.name, self.failure)
        return None

    def _failure_key(self, arguments: Arguments, span: buckets.Range | None) -> Any:
        assert self._signature is not None  # since the first call
        kinds = tuple(
            (name, kind(value, name, self.spec.varying))
            for name, value in self._signature.given(arguments).items()
        )
        return span, kinds

    def _entry(
        self, span: buckets.Range | None, number: int, vllm_config: VllmConfig
    ) -> Entry:
        return entry_for(
            self.spec.name,
            {
                "region": repr(self.spec),
                "structure": self.structure.digest,
                "range": repr(span),
                "graph": str(number),
            },
            {"structure": {"description": repr(self.structure.description)}},
            vllm_config,
            unportable=self._unportable(),
            wanted=self.spec.use_aot_compile,
            rank=repr((_rank(), self.structure.rank)),
        )

    def _unportable(self) -> str | None:
        if self.structure.portable:
            return None
        first, *others = self.structure.unportable
        more = f", and of {len(others)} more," if others else ""
        return f"the value of {first}{more} cannot be compared in another process"

    def _load_or_compile(
        self,
        entry: Entry,
        module: nn.Module,
        arguments: Arguments,
        vllm_config: VllmConfig,
        has_others: bool,
    ) -> Graph:
        def make(load_seconds: float) -> store.Made:
            counters.load_seconds += load_seconds
            counters.artifact_misses += entry.enabled
            graph, saveable = self._compile_timed(module, arguments, vllm_config)
            counters.recompiles += has_others
            traced = dynamo.traced_functions(saveable)
            self.of_rank |= any(map(_ASKS_FOR_RANK.search, traced))
            unkept = None if self.shareable else "it reads the name of its module"
            return store.Made(graph, saveable, self._captured, self.of_rank, unkept)

        # With this backend, compiling runs the graph, and so waits for other ranks.
        runs = vllm_config.compilation_config.backend == "eager"

        # Guards remember the mode in which they are made or loaded.
        with (
            torch.inference_mode(),
            set_current_vllm_config(vllm_config),
            garbage.kept(),
        ):
            found = store.load_or_make(
                entry,
                self._scope,
                make,
                changed=lambda before: captured_globals.changed(before, self._scope),
                working_in=functools.partial(
                    compiler.encoder_compilation_config,
                    vllm_config.compilation_config,
                ),
                takes_turns=self.shareable and not self.of_rank and not runs,
            )
            if isinstance(found, store.Made):
                if found.unkept is not None:
                    counters.unkept += 1
                    self.unkept = found.unkept
                graph: Graph = found.value
                return graph
            counters.load_seconds += found.seconds
            counters.artifact_loads += 1
            self._captured |= found.captured_globals
            return graph_of(found.function)

    def _compile_timed(
        self, module: nn.Module, arguments: Arguments, vllm_config: VllmConfig
    ) -> tuple[Graph, Any]:
        start, backend = time.perf_counter(), _seconds_of_backend()
        with inductor_threads.more():
            compiled = self._compile(module, arguments, vllm_config)
        seconds = time.perf_counter() - start
        backend = _seconds_of_backend() - backend
        counters.graphs += 1
        counters.dynamo_seconds += seconds - backend
        counters.inductor_seconds += backend
        config = vllm_config.compilation_config
        if config.mode != CompilationMode.VLLM_COMPILE:
            # vLLM's monitor counts and reports these seconds in its own mode only.
            config.encoder_compilation_time += seconds
        logger.info(
            "[%s] compiled in %.2f s (structure %s)",
            self.spec.name,
            seconds,
            self.structure.digest[:12],
        )
        return compiled

    def _compile(
        self, module: nn.Module, arguments: Arguments, vllm_config: VllmConfig
    ) -> tuple[Graph, Any]:
        limit = self.settings.compile_seconds if self.spec.surveyed else 0
        while True:
            try:
                with time_limit(limit):
                    return compiler.compile_region(
                        self.spec,
                        module,
                        arguments,
                        vllm_config,
                        self._note_guards,
                        self._unbacked,
                    )
            except TimeoutError:
                raise
            except Exception:
                if not self._stop_unbacked():
                    raise

    def _note_guards(self, guards: Sequence[Any]) -> None:
        """What the graph takes for granted beside its arguments."""
        self._captured |= captured_globals.values(guards, self._scope)
        own = RANK_ATTRS if self.structure.rank else frozenset()
        self.of_rank |= any(
            _reads(_RANKS if guard.is_global else own, guard) for guard in guards
        )
        names = {*IDENTITY_ATTRS, *self.spec.identity_attrs}
        if self.shareable and any(_reads(names, guard) for guard in guards):
            self.shareable = False
            logger.warning_once(
                "%s reads its own prefix or layer name in forward: each instance is "
                "compiled by itself.",
                self.spec.name,
            )

    def _fall_back(self, error: Exception) -> None:
        if self.settings.on_error == "raise":
            raise error
        # For this kind of call only: another one may have nothing wrong with it.
        counters.fallbacks += 1
        self.failure = f"it cannot be compiled. {errors.explain(error)}"
        logger.warning("%s runs eager: %s", self.spec.name, self.failure)

    # ------------------------------------------------------------ observed calls

    def _observed(
        self,
        run: CompiledFn,
        module: nn.Module,
        arguments: Arguments,
        span: buckets.Range | None,
        first: bool = False,
    ) -> Any:
        if capturing():  # a comparison reads the device, and would be replayed
            return self._run(run, module, arguments, span)
        if self._measures:
            measure.note(self, run, self.spec.forward(module), module, *arguments)
        if first or self.parity_check == "all":
            return self._compared_with_eager(run, module, arguments, span)
        return self._run(run, module, arguments, span)

    def settle(self, measured: str, *, eager: bool) -> None:
        """Take note of a measurement; with `eager` all runs eager from now on."""
        self.measured = measured
        self._measures = False
        self._observes = self.parity_check == "all"
        if eager:
            self.eager = measured
            self._graphs.clear()

    def _compared_with_eager(
        self,
        run: CompiledFn,
        module: nn.Module,
        arguments: Arguments,
        span: buckets.Range | None,
    ) -> Any:
        """Run the graph, and check its first results as `parity_check` says."""
        key = id(module), id(run)
        if self.parity_check == "off" or key in self._compared:
            return self._run(run, module, arguments, span)
        self._compared.add(key)
        counters.parity_checks += 1
        eager = self.spec.forward(module)
        try:
            output, expected, difference = parity.compare(run, eager, module, arguments)
        except Exception as error:
            return self._rescued(error, run, module, arguments, span)
        if difference is None:
            return output
        counters.parity_failures += self.eager is None
        if self.eager is None:
            self.eager = f"compiled and eager differ: {difference}"
            logger.error("%s runs eager from now on: %s", self.spec.name, self.eager)
        self._graphs.clear()
        metrics.publish(asdict(counters))
        return expected


def _only_for(module: nn.Module, frame: Signature, graph: Graph) -> Graph:
    """A graph that reads the name of its module: followers may have joined already."""

    def accepts(f_locals: dict[str, Any]) -> bool:
        return f_locals[frame.self_name] is module and graph.accepts(f_locals)

    return Graph(accepts, graph.run)


def _none() -> None:
    return None


_RANKS = RANK_ATTRS | {"rank", "rank_in_group", "local_rank"}
"""Of a global, for instance one of vLLM's process groups."""
_ASKS_FOR_RANK = re.compile(r"\b(get_(group_|node_local_)?rank|rank)\(")
"""Dynamo calls these functions while tracing and leaves no guard."""


def _reads(names: Set[str], guard: Any) -> bool:
    return not names.isdisjoint(re.findall(r"\w+", guard.name))


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _seconds_of_backend() -> float:
    seconds = symbols.SECONDS.find() or {}
    return sum(seconds.get("create_aot_dispatcher_function", ()))


_structures: dict[tuple[Any, ...], SharedGraph] = {}


def shared_graph(
    module: nn.Module, spec: RegionSpec, vllm_config: VllmConfig
) -> SharedGraph:
    """The shared graph of the structure of `module`, made if `module` is the leader.

    Structures are shared through the whole process: engines of equal configuration
    share them too.
    """
    structure = structure_of(module, ignored=spec.identity_attrs)
    # While a graph is compiled, configurations that are part of the key, and globals
    # that the graph captured, may have other values.
    with compiler.LOCK:
        environment = environment_digest(vllm_config)
        key = (spec.name, structure.digest, structure.rank, environment)
        found = _structures.get(key)
        if found is not None and found.accepts_followers():
            counters.followers += 1
            return found
        counters.structures += 1
        compilation_counter.num_models_seen += 1
        made = SharedGraph(
            spec, structure, Settings.of(vllm_config), measure.wanted(vllm_config)
        )
        if found is None or found.shareable:
            _structures[key] = made
        return made


def structures() -> list[SharedGraph]:
    """All that this process has met, in that order."""
    return list(_structures.values())
