# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Who computes the attention of an item on CPU: a path of our kernel, or PyTorch.

The kind of the CPU, the dtype and the length of the item decide, and nothing else: an
item has the same provider alone and among others. No measurement told head sizes apart.
Where a kind of CPU has not been measured, PyTorch's attention runs, which is what
vLLM's wrapper calls.
"""

import functools
from typing import NamedTuple

import torch

from vllm_mmc.attention import cpu_kernel
from vllm_mmc.attention.cpu_kernel import State

AUTO, SDPA = "auto", "sdpa"
PROVIDERS = (SDPA, "amx", "avx512_bf16", "avx512", "avx2", "portable")
"""PyTorch's attention over items of one length, and paths of our kernel."""


class Part(NamedTuple):
    """Items of `shortest` to `longest` tokens are `provider`'s."""

    shortest: int
    longest: int
    provider: str


_Steps = tuple[tuple[int, str], ...]  # up to so many tokens, this provider
_ALL = cpu_kernel.ALL_LENGTHS[1]


def _always(provider: str) -> _Steps:
    return ((_ALL, provider),)


# AMX has PyTorch multiply six times faster than AVX-512; our fp32 vectors then win with
# short items only (benchmarks/README.md). PyTorch multiplies fp16 fast there, too.
_SHORT_ONLY: _Steps = ((64, "avx512"), (_ALL, SDPA))

CHOICES: dict[str, dict[torch.dtype, _Steps]] = {
    "amx": {
        torch.bfloat16: _always("amx"),
        torch.float16: _SHORT_ONLY,
        torch.float32: _always("avx512"),
    },
    "avx512_bf16": {
        torch.bfloat16: _always("avx512_bf16"),
        torch.float16: _always("avx512"),
        torch.float32: _always("avx512"),
    },
    "avx512": dict.fromkeys(cpu_kernel.DTYPES, _always("avx512")),
    "avx2": dict.fromkeys(cpu_kernel.DTYPES, _always("avx2")),
    "portable": dict.fromkeys(cpu_kernel.DTYPES, _always(SDPA)),
}
"""Kind of CPU -> dtype -> providers by length. A kind is named after its best path."""

NOT_COMPILED: dict[str, _Steps] = {
    "amx": _SHORT_ONLY,
    "avx512_bf16": _always("avx512"),
}
"""What takes the place of a path that the compiler was too old for."""


def kind() -> str:
    """The kind of this CPU, of `CHOICES`: its best path, compiled or not."""
    return _kind(cpu_kernel.states())


def _kind(states: tuple[tuple[str, State], ...]) -> str:
    here = (State.RUNS, State.NOT_COMPILED)
    return next(name for name, state in states if name in CHOICES and state in here)


def parts(dtype: torch.dtype, provider: str = AUTO) -> tuple[Part, ...]:
    """Who computes items of which lengths; all lengths, in ascending order.

    Args:
        dtype: fp32, bf16 or fp16.
        provider: One of `PROVIDERS` for all lengths, or "auto".

    Raises:
        RuntimeError: The kernel was not built.
    """
    return _parts(cpu_kernel.states(), dtype, provider)


@functools.cache
def _parts(
    states: tuple[tuple[str, State], ...], dtype: torch.dtype, provider: str
) -> tuple[Part, ...]:
    if not states:
        raise cpu_kernel.NOT_BUILT
    if provider != AUTO:
        return (Part(0, _ALL, provider),)
    found, shortest = [], 0
    for longest, name in CHOICES[_kind(states)][dtype]:
        steps: _Steps = ((longest, name),)
        if dict(states).get(name) == State.NOT_COMPILED:
            steps = NOT_COMPILED[name]
        for last, instead in steps:
            found.append(Part(shortest, min(last, longest), instead))
            shortest = last + 1
    return tuple(found)


def why_not(provider: str) -> str | None:
    """Why a provider cannot run here; None if it can."""
    if provider in (AUTO, SDPA):
        return None
    state = dict(cpu_kernel.states()).get(provider, State.NOT_COMPILED)
    return None if state == State.RUNS else state.reason


def describe(provider: str = AUTO) -> str:
    """For logs and `vllm-mmc doctor`: the kind of CPU, and who computes what."""
    states = cpu_kernel.states()
    if not states:
        return "PyTorch's attention: the CPU kernel was not built"
    by_dtype = [
        f"{str(dtype).removeprefix('torch.')}: {_written(parts(dtype, provider))}"
        for dtype in cpu_kernel.DTYPES
    ]
    lost = [
        f"; {name} is left out: {state.reason}"
        for name, state in states
        if name in CHOICES and state in (State.NOT_COMPILED, State.NOT_OF_SYSTEM)
    ]
    return f"CPU of kind {_kind(states)}; {', '.join(by_dtype)}{''.join(lost)}"


def _written(found: tuple[Part, ...]) -> str:
    *bounded, last = found
    short = [f"{part.provider} up to {part.longest} tokens, " for part in bounded]
    return f"{''.join(short)}{last.provider}"
