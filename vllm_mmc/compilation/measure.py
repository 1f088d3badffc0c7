# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Is a compiled region faster than the eager one on this machine? (setting `measure`)

Each structure is timed both ways at warm-up, in turns, on the largest call that it had
there. A structure that is slower compiled runs eager from then on.

With several ranks nothing is measured. Ranks would not always decide alike, and a graph
need not call the collectives that eager calls: vLLM's passes in mode 3 fuse some of
them. A rank that waits for another collective than the other ranks hangs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger

from vllm_mmc import metrics
from vllm_mmc.compilation.arguments import leaves
from vllm_mmc.compilation.counters import counters
from vllm_mmc.settings import Settings

if TYPE_CHECKING:
    from vllm_mmc.compilation.shared_graph import SharedGraph

logger = init_logger(__name__)

PAIRS = 5
"""How often both ways are timed, after one time that does not count."""
SLOWER = 1.03
"""Compiled stays unless it takes more than this much of eager's time: less is noise."""


@dataclass(frozen=True)
class _Call:
    structure: "SharedGraph"
    size: int
    devices: set[torch.device]
    compiled: Callable[[], Any]
    eager: Callable[[], Any]


_largest: dict[int, _Call] | None = None
"""Structure (id) -> its largest call; None outside of a warm-up."""


def wanted(vllm_config: VllmConfig) -> bool:
    """Whether the structures of this engine are measured."""
    if Settings.of(vllm_config).measure == "off":
        return False
    ranks = vllm_config.parallel_config.world_size
    if ranks > 1:
        logger.warning_once(
            "The setting measure has no effect with %d ranks: all of them must run the "
            "same collectives.",
            ranks,
        )
    return ranks == 1


def note(
    structure: "SharedGraph",
    compiled: Callable[..., Any],
    eager: Callable[..., Any],
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Keep this call if it is the largest of its structure in this warm-up.

    Args:
        structure: What the call belongs to.
        compiled: Takes `module`, then the arguments.
        eager: Takes the arguments.
    """
    if _largest is None:
        return
    parts = (leaf for _, leaf in leaves([*args, *kwargs.values()], ""))
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    size = sum(tensor.numel() for tensor in tensors)
    known = _largest.get(id(structure))
    if known is None or known.size < size:
        _largest[id(structure)] = _Call(
            structure,
            size,
            {t.device for t in tensors if t.device.type != "cpu"},
            functools.partial(compiled, module, *args, **kwargs),
            functools.partial(eager, *args, **kwargs),
        )


@contextmanager
def at_warmup() -> Generator[None, None, None]:
    """The calls in this block are a warm-up. At its end, the structures are measured.

    Nothing is kept, and nothing called, where no structure is to be measured.
    """
    global _largest
    calls: dict[int, _Call] = {}
    _largest = calls
    try:
        yield
    finally:
        _largest = None
    for call in calls.values():
        if call.structure.eager is None:
            _decide(call)


def _decide(call: _Call) -> None:
    name = call.structure.spec.name
    try:
        compiled, eager = _medians(call)
    except Exception as error:
        logger.warning("%s cannot be measured: %r", name, error)
        return
    slower = compiled > SLOWER * eager
    found = (
        f"compiled takes {compiled / eager:.2f} of eager's time here "
        f"({compiled * 1e3:.3g} and {eager * 1e3:.3g} ms)"
    )
    call.structure.settle(found, eager=slower)
    if slower:
        counters.measured_eager += 1
        metrics.publish(asdict(counters))
    way = "runs eager" if slower else "stays compiled"
    logger.info("%s %s: %s.", name, way, found)


def _medians(call: _Call) -> tuple[float, float]:
    """Seconds of the compiled call and of the eager one."""
    pairs = [
        (_seconds(call.compiled, call.devices), _seconds(call.eager, call.devices))
        for _ in range(1 + PAIRS)
    ]
    compiled, eager = zip(*pairs[1:], strict=True)
    return statistics.median(compiled), statistics.median(eager)


def _seconds(call: Callable[[], Any], devices: set[torch.device]) -> float:
    for device in devices:
        torch.accelerator.synchronize(device)
    begun = time.perf_counter()
    call()
    for device in devices:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begun
