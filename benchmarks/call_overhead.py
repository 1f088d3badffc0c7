# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Microseconds that the host spends around the compiled function of a region.

The blocks are tiny, so that what they compute costs little. All sides take turns, on
one thread, whose own time is measured: other processes do not count. "beyond" is the
median difference to the bare compiled function in the same round; the check of the
guards is part of it.
"""

import argparse
import functools
import inspect
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn as nn
import vllm.compilation.decorators as stock
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.engine import vllm_compile_on_cpu
from vllm_mmc.compilation import decorators
from vllm_mmc.compilation.attached import attach
from vllm_mmc.compilation.region import RegionSpec
from vllm_mmc.compilation.shared_graph import structures

WIDTH, TOKENS = 16, 4
ATTACHED, DECORATED, STOCK = "ours, attached", "ours, decorated", "vLLM's, decorated"
OURS = ATTACHED, DECORATED
GUARDS, BARE = ": guards", ": compiled function"


class OneArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ self.weight) + x


class SixArguments(OneArgument):
    """It takes what a block of Qwen2.5-VL takes."""

    def forward(
        self,
        x: torch.Tensor,
        cu_seqlens: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        max_seqlen: torch.Tensor,
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = torch.nn.functional.silu(x @ self.weight)
        return y * cos + x * sin + (cu_seqlens[-1] - max_seqlen)


BLOCKS: dict[type[OneArgument], list[str]] = {  # and the arguments that vary in size
    OneArgument: ["x"],
    SixArguments: ["x", "cu_seqlens", "cos", "sin"],
}


def arguments(block: type[nn.Module]) -> tuple[torch.Tensor, ...]:
    x, cos, sin = (torch.randn(TOKENS, WIDTH) for _ in range(3))
    cu_seqlens = torch.tensor([0, TOKENS], dtype=torch.int32)
    given = x, cu_seqlens, cos, sin, torch.tensor(TOKENS)
    return given[:1] if block is OneArgument else given


@contextmanager
def compile_mode(mode: int) -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig(compile_mm_encoder=True))
    with set_current_vllm_config(config):
        if mode != 3:
            yield config  # vLLM chooses mode 2 on CPU
            return
        with vllm_compile_on_cpu(config):
            yield config


def sides(block: type[OneArgument], mode: int) -> dict[str, Callable[[], Any]]:
    """Side -> a call, which has been made before."""
    varying = BLOCKS[block]

    def decorated(decorator: Callable[..., Any]) -> nn.Module:
        cls = type(f"Mode{mode}{block.__name__}", (block,), {"forward": block.forward})
        return decorator(dynamic_arg_dims=dict.fromkeys(varying, 0), is_encoder=True)(
            cls
        )()

    with compile_mode(mode) as config:
        spec = RegionSpec(
            name=f"Attached{mode}{block.__name__}",
            dynamic_dims={name: {0: None} for name in varying},
            unbacked_dims={},
            is_encoder=True,
            surveyed=True,
        )
        attached = block()
        attach(attached, spec, config)
        modules = {
            "eager": block(),
            ATTACHED: attached,
            DECORATED: decorated(decorators.support_torch_compile),
        }
        if mode == 3:
            modules[STOCK] = decorated(stock.support_torch_compile)
        # vLLM's decorator leaves marks on its arguments.
        calls = {
            side: functools.partial(module, *arguments(block))
            for side, module in modules.items()
        }
        found = {}
        for side, call in calls.items():
            call()
            call()
            if side in OURS:
                found[side] = structures()[-1]
    parts: dict[str, Callable[[], Any]] = {}
    for side in OURS:
        call, structure = calls[side], found[side]
        (graph,) = structure._graphs[None]
        bound = inspect.signature(block.forward).bind(call.func, *call.args)
        bound.apply_defaults()
        parts[side + GUARDS] = functools.partial(graph.accepts, bound.arguments)
        parts[side + BARE] = functools.partial(graph.run, call.func, *call.args)
    return calls | parts


def measure(
    calls: dict[str, Callable[[], Any]], rounds: int, number: int
) -> dict[str, list[float]]:
    """Side -> microseconds of a call, one for each round."""
    taken: dict[str, list[float]] = {side: [] for side in calls}
    for _ in range(rounds):
        for side, call in calls.items():
            begun = time.thread_time_ns()
            for _ in range(number):
                call()
            taken[side].append((time.thread_time_ns() - begun) / number / 1e3)
    return taken


def result(
    block: type[nn.Module], mode: int, side: str, taken: dict[str, list[float]]
) -> dict[str, Any]:
    beyond = None
    if side in (*OURS, STOCK):
        # What vLLM's calls at last cannot be had; it is the same code.
        bare = (side if side in OURS else DECORATED) + BARE
        pairs = zip(taken[side], taken[bare], strict=True)
        beyond = statistics.median(a - b for a, b in pairs)
    return {
        "block": block.__name__,
        "mode": mode,
        "side": side,
        "microseconds": harness.spread(taken[side]) | {"least": min(taken[side])},
        "beyond": beyond,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--number", type=int, default=200, help="calls in a round")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        os.environ["VLLM_CACHE_ROOT"] = cache
        for block in BLOCKS:
            for mode in (2, 3):
                calls = sides(block, mode)
                taken = measure(calls, options.rounds, options.number)
                results += [result(block, mode, side, taken) for side in calls]
    harness.print_table(
        ["block", "mode", "side", "us", "least", "beyond"],
        [
            [
                row["block"],
                row["mode"],
                row["side"],
                row["microseconds"]["median"],
                row["microseconds"]["least"],
                row["beyond"],
            ]
            for row in results
        ],
    )
    harness.write_json(
        options.json or harness.REPOSITORY / "build/benchmarks/call_overhead.json",
        {
            "environment": harness.environment(),
            "rounds": options.rounds,
            "number": options.number,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
