# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's encoder CUDA graphs on a machine without CUDA.

vLLM's own `EncoderCudaGraphManager` runs: its budgets, its packing, its buffers. Only
the graph is a stand-in. A capture writes down each operator with all that a graph keeps
of it: shapes, strides, plain arguments, values of tensors on the host, addresses of
what is not made in the graph. A replay runs the body again, on the same buffers with
new contents, and fails if it would not be the same graph.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.distributed import parallel_state
from vllm.platforms import current_platform
from vllm.v1.worker import encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

from vllm_mmc.compilation.shared_graph import SharedGraph


class GraphError(AssertionError):
    """What a CUDA graph cannot do, or would do with values of the capture."""


READS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave.Tensor",
    "aten::unique_consecutive",
    "aten::_unique2",
}
"""The host waits for what these find."""
FROM_HOST = {"aten::lift_fresh", "aten::lift_fresh_copy"}
"""What `torch.tensor` becomes: a copy from memory that is gone at a replay."""


class Trace(TorchDispatchMode):
    """All operators of a body, with what a graph keeps of each.

    Args:
        host: The tensors on the host that the body may read; they have no dimension.
    """

    def __init__(self, host: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._host = {id(tensor) for tensor in host.values()}
        self._made: set[int] = set()
        self._given: set[int] = set()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = op._schema
        name = f"{schema.name}.{schema.overload_name}".rstrip(".")
        if {schema.name, name} & FROM_HOST:
            raise GraphError(f"{name}: a tensor is made from values on the host")
        if {schema.name, name} & READS and id(args[0]) not in self._host:
            raise GraphError(f"{name} reads a tensor of the device")
        if schema.name.startswith("aten::index") and _has_mask(args):
            raise GraphError(f"{name} with a mask reads a tensor of the device")
        self.calls.append((name, self.kept(args), self.kept(kwargs)))
        return self.note(op(*args, **kwargs))

    def region(self, shared: SharedGraph, call: Callable[..., Any], *args: Any) -> Any:
        """A compiled region is one call: of this function, for this module."""
        self.__exit__(None, None, None)
        try:
            module, *given = args[:-1]
            self.calls.append((shared.spec.name, id(module), self.kept(given)))
            return self.note(call(shared, *args))
        finally:
            self.__enter__()

    def note(self, output: Any) -> Any:
        """Take note of tensors that are made in the graph."""
        if isinstance(output, torch.Tensor):
            if (address := _address(output)) not in self._given:
                self._made.add(address)
        elif isinstance(output, (list, tuple)):
            for part in output:
                self.note(part)
        return output

    def kept(self, value: Any) -> Any:
        """What a graph keeps of an argument."""
        if isinstance(value, torch.Tensor):
            form = tuple(value.shape), value.stride(), value.dtype
            if id(value) in self._host:
                return ("host", value.dtype, value.item())
            if (address := _address(value)) in self._made:
                return ("made", *form)
            self._given.add(address)
            return ("given", *form, value.data_ptr())
        if isinstance(value, (list, tuple)):
            return tuple(map(self.kept, value))
        if isinstance(value, dict):
            return {name: self.kept(part) for name, part in value.items()}
        return repr(value)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _has_mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 else ()
    return isinstance(indices, (list, tuple)) and any(
        isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
        for i in indices
    )


class StandIn:
    """The graphs of this process.

    Attributes:
        captures: How many were captured.
        replays: How many were replayed.
    """

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self._capturing: EncoderCudaGraphManager | None = None
        self._trace: Trace | None = None

    @contextlib.contextmanager
    def graph(self, graph: Any, *_: Any, **__: Any) -> Iterator[None]:
        """`torch.cuda.graph`: what runs inside is captured."""
        assert self._capturing is not None
        model: Any = self._capturing.model
        body = model.encoder_cudagraph_forward

        def capture(values: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
            tensors = {n: x for n, x in values.items() if x is not None}
            host = {name: x for name, x in tensors.items() if x.dim() == 0}
            read = {name: x.clone() for name, x in host.items()}
            trace, found = self._traced(body, values, kwargs, host)

            def replay(output: torch.Tensor) -> None:
                for name, x in host.items():
                    x.copy_(read[name])  # whatever stands there now, it was read then
                again, new = self._traced(body, values, kwargs, host)
                _compare(trace.calls, again.calls)
                output.copy_(new)
                self.replays += 1

            graph.run = replay
            return found

        with mock.patch.object(model, "encoder_cudagraph_forward", capture):
            yield
        self.captures += 1

    def _traced(
        self,
        body: Callable[..., torch.Tensor],
        values: dict[str, torch.Tensor],
        kwargs: Any,
        host: dict[str, torch.Tensor],
    ) -> tuple[Trace, torch.Tensor]:
        self._trace = Trace(host)
        capturing = mock.patch("torch.cuda.is_current_stream_capturing", lambda: True)
        try:
            with capturing, self._trace as trace:
                return trace, body({**values}, **kwargs)
        finally:
            self._trace = None

    def call(self, shared: SharedGraph, *args: Any) -> Any:
        """`SharedGraph.call`."""
        if self._trace is None:
            return _call(shared, *args)
        return self._trace.region(shared, _call, *args)

    def capture_budget(
        self, manager: EncoderCudaGraphManager, *a: Any, **k: Any
    ) -> Any:
        """`EncoderCudaGraphManager._capture_budget_graph`."""
        self._capturing = manager
        return _capture_budget(manager, *a, **k)

    def run_budget(self, manager: EncoderCudaGraphManager, *a: Any, **k: Any) -> Any:
        """`EncoderCudaGraphManager._run_budget_graph`, on buffers full of poison."""
        given = inspect.signature(_run_budget).bind(manager, *a, **k)
        given.apply_defaults()
        model: Any = manager.model
        prepare = model.prepare_encoder_cudagraph_replay_buffers
        budget, keys = given.arguments["token_budget"], given.arguments["axis_keys"]
        graphs = manager.budget_graphs[given.arguments["path"]]
        graph = graphs[(budget, keys) if keys else budget]

        def prepared(*args: Any, **kwargs: Any) -> Any:
            found = prepare(*args, **kwargs)
            for name, buffer in graph.input_buffers.items():
                kept = found.values.get(name, buffer) is None
                if buffer is not None and buffer.dim() and not kept:
                    poison(buffer)
            poison(graph.output_buffer)
            graph.graph.output = graph.output_buffer
            return found

        name = "prepare_encoder_cudagraph_replay_buffers"
        with mock.patch.object(model, name, prepared):
            return _run_budget(*given.args)


_call = SharedGraph.call
_capture_budget = EncoderCudaGraphManager._capture_budget_graph
_run_budget = EncoderCudaGraphManager._run_budget_graph


class _Graph:
    """`torch.cuda.CUDAGraph`."""

    run: Callable[[torch.Tensor], None]
    output: torch.Tensor

    def replay(self) -> None:
        self.run(self.output)


def poison(buffer: torch.Tensor) -> None:
    """Fill it with values that nothing may use."""
    if buffer.is_floating_point():
        buffer.fill_(torch.nan)
    elif buffer.dtype != torch.bool:
        buffer.fill_(torch.iinfo(buffer.dtype).max // 2)


def _compare(captured: list[Any], replayed: list[Any]) -> None:
    for number, pair in enumerate(zip(captured, replayed, strict=False)):
        if pair[0] != pair[1]:
            raise GraphError(
                f"call {number} has values of the capture: {pair[0]}, now {pair[1]}"
            )
    if len(captured) != len(replayed):
        raise GraphError(f"{len(captured)} calls in the capture, {len(replayed)} now")


@contextlib.contextmanager
def cuda_graphs_on_cpu() -> Iterator[StandIn]:
    """Inside, vLLM's `EncoderCudaGraphManager` captures and replays on CPU.

    Raises:
        GraphError: at a capture, where the host would wait for the device or a tensor
            comes from the host; at a replay, where the body does something else than
            at the capture.
    """
    stand_in = StandIn()

    def method(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def unbound(owner: Any, *args: Any, **kwargs: Any) -> Any:
            return call(owner, *args, **kwargs)

        return unbound

    manager = EncoderCudaGraphManager
    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (torch.cuda, "CUDAGraph", _Graph),
            (torch.cuda, "graph", stand_in.graph),
            (encoder_cudagraph, "current_stream", lambda: None),
            (manager, "_capture_budget_graph", method(stand_in.capture_budget)),
            (manager, "_run_budget_graph", method(stand_in.run_budget)),
            (SharedGraph, "call", method(stand_in.call)),
            # What Model Runner V2 captures in.
            (parallel_state, "graph_capture", lambda **_: contextlib.nullcontext()),
            (type(current_platform), "graph_pool_handle", lambda _: "pool"),
            (torch.accelerator, "synchronize", lambda *_: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, new, create=True))
        yield stand_in
