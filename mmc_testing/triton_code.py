# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What Inductor makes of a region on CUDA, on a machine without CUDA.

The region is traced on PyTorch's `PrivateUse1` device, for which PyTorch needs no
library, and then compiled for a CUDA device that answers as an H100 does. Nothing is
run: Inductor's Python code is read. PyTorch and Triton keep what they know of devices
for the life of a process: use this in a forked test.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils import _pytree as pytree

from mmc_testing.fake_device import DEVICE, register
from vllm_mmc.compilation.decorators import _own_spec

CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Kernels:
    """What a compiled region launches in one call.

    Attributes:
        generated: how many kernels of Inductor's own.
        products: of the vendor's library, by name.
        others: operators that Inductor calls as they are, by name.
    """

    generated: int
    products: Mapping[str, int]
    others: Mapping[str, int]


def kernels_on_cuda(module: nn.Module, arguments: dict[str, Any]) -> Kernels:
    """Compile `forward`, and read the code.

    Args:
        module: on the CPU; its values are not used. Dimensions that its class is
            decorated to vary do.
        arguments: of `forward`, by name, on the CPU. 0-d tensors stay there.
    """
    own = _own_spec(type(module))
    varying = {} if own is None else own[0].varying
    shapes = ShapeEnv()
    fake = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}

    def placed(x: torch.Tensor, dynamic: Iterable[int] = ()) -> torch.Tensor:
        dims = [DimDynamic.STATIC] * x.dim()
        for dim in dynamic:
            dims[dim] = DimDynamic.DYNAMIC
        context = StatelessSymbolicContext(dynamic_sizes=dims)
        like = fake.from_tensor(x.detach(), symbolic_context=context)
        with fake:
            return torch.empty_strided(
                like.shape, like.stride(), dtype=like.dtype, device=DEVICE
            )

    def traced(*leaves: Any) -> Any:
        state, given = pytree.tree_unflatten(list(leaves), tree)
        found = torch.func.functional_call(module, state, (), given)
        return pytree.tree_leaves(found)

    register()
    with fake, torch.no_grad():
        given = {
            name: placed(x, varying.get(name, ()))
            if isinstance(x, torch.Tensor) and x.dim()
            else x
            for name, x in arguments.items()
        }
        placed_state = {name: placed(x) for name, x in state.items()}
        leaves, tree = pytree.tree_flatten((placed_state, given))
        from torch._inductor.decomposition import select_decomp_table

        # Layers that vLLM compiles by themselves are traced into.
        with torch._dynamo.config.patch(error_on_nested_fx_trace=False):
            graph = make_fx(traced, select_decomp_table())(*leaves)
        if mutating := [n for n in graph.graph.nodes if _mutates(n)]:
            raise ValueError(f"not functional: {mutating}")
        leaves = [_on_cuda(x) for x in leaves]
    for node in graph.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs),
            lambda x: CUDA if isinstance(x, torch.device) and x == DEVICE else x,
        )
    graph.recompile()
    return _read(_code(graph, leaves, fake))


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _device_on_cuda(x: Any) -> Any:
    return CUDA if isinstance(x, torch.device) and x == DEVICE else x


def _on_cuda(x: Any) -> Any:
    if not isinstance(x, torch.Tensor) or x.device != DEVICE:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA)


class _Read(BaseException):
    """Inductor has written its code."""


def _code(graph: fx.GraphModule, inputs: list[Any], fake: FakeTensorMode) -> str:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering

    found = []

    def write(self: GraphLowering) -> None:
        code, _ = self.codegen()
        found.append(getattr(code, "value", code))
        raise _Read

    with (
        _absent_cuda(),
        config.patch(compile_threads=1, fx_graph_cache=False),
        mock.patch.object(GraphLowering, "compile_to_module", write),
        torch._guards.tracing(torch._guards.TracingContext(fake)),
        contextlib.suppress(_Read),
    ):
        compile_fx_inner(graph, inputs)
    return str(found[0])


def _read(code: str) -> Kernels:
    _, _, call = code.partition("\n    def call(")
    return Kernels(
        len(re.findall(r"\btriton_\w+\.run\(", call)),
        Counter(re.findall(r"\bextern_kernels\.(\w+)\(", call)),
        Counter(re.findall(r"\btorch\.ops\.([\w.]+)\(", call)),
    )


@contextlib.contextmanager
def _absent_cuda() -> Iterator[None]:
    """What Inductor asks of `torch.cuda` and Triton's driver while it writes code."""
    import triton
    from torch._inductor import scheduler
    from torch._inductor.runtime.hints import DeviceProperties
    from triton.backends.compiler import GPUTarget

    sizes = {
        "multi_processor_count": 132,
        "regs_per_multiprocessor": 65536,
        "max_threads_per_multi_processor": 2048,
        "max_threads_per_block": 1024,
        "warp_size": 32,
    }
    properties = SimpleNamespace(
        name="NVIDIA H100",
        major=9,
        minor=0,
        total_memory=80 << 30,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=227 << 10,
        shared_memory_per_multiprocessor=228 << 10,
        L2_cache_size=50 << 20,
        gcnArchName="",
        is_integrated=0,
        **sizes,
    )
    hints = DeviceProperties(type="cuda", index=0, cc=90, major=9, **sizes)
    answers = {
        "get_device_properties": properties,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "is_available": True,
        "device_count": 1,
        "_lazy_init": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "synchronize": None,
    }
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: CUDA,
        get_device_interface=lambda: torch.cuda,
        get_current_stream=lambda device: 0,
        is_active=lambda: True,
    )
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(
                mock.patch.object(
                    torch.cuda, name, lambda *_, _value=value, **__: _value
                )
            )
        stack.enter_context(
            mock.patch.object(DeviceProperties, "create", classmethod(lambda *_: hints))
        )
        for module in (torch.utils._triton, scheduler):
            stack.enter_context(
                mock.patch.object(module, "has_triton", lambda *_, **__: True)
            )
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", driver))
        yield
