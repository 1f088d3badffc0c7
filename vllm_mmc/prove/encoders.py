# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""One encoder at published sizes: is it right, does the host wait for the device, how
many kernels run, how long does a call take.

The caller runs this module with `python -m`, in a process of its own. Where there is no
GPU, stand-ins go the same way: nobody waits for a CPU, PyTorch's operators stand for
kernels, and the call that a CUDA graph would hold stands for its replay.
"""

import gc
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_mmc.prove.cases import CASES, Case
from vllm_mmc.prove.providers import DEFAULT, FLOOR, OURS
from vllm_mmc.prove.report import spread

if TYPE_CHECKING:
    from vllm_mmc.prove.providers import Provider

GRAPH = "ours, CUDA graph"


@dataclass(frozen=True)
class Plan:
    """What to measure of one encoder.

    Attributes:
        arch: of `CASES`.
        sizes: in units of the case, in the order in which they come.
        depth: blocks.
        dtype: of the model.
        blocks: "real" or "tiny".
        rounds: at most, of each size.
        seconds: after which a size gets no more rounds.
    """

    arch: str
    sizes: tuple[int, ...]
    depth: int
    dtype: str
    blocks: str
    rounds: int = 30
    seconds: float = 8


def plans(families: tuple[str, ...], *, quick: bool) -> list[Plan]:
    """Returns what is measured: all cases of these families, or tiny ones."""
    return [
        Plan(case.arch, (case.first_size,), 2, "float32", "tiny", rounds=3)
        if quick
        else Plan(case.arch, case.prove_sizes, case.prove_depth, "bfloat16", "real")
        for case in CASES.values()
        if (case.family or case.arch) in families and case.prove_sizes
    ]


def measure(plan: Plan, directory: Path) -> dict[str, Any]:
    """Measure one encoder. Runs in a process of its own.

    Raises:
        RuntimeError: if something is compiled that must not be, or the other way round.
    """
    from vllm_mmc.prove import providers, towers
    from vllm_mmc.prove.floor import floor_of

    case = CASES[plan.arch]
    checkpoint = case.checkpoint(
        directory / "checkpoint",
        depth=plan.depth,
        dtype=plan.dtype,
        blocks=plan.blocks,
    )
    config = providers.config_for(
        case, checkpoint, "float32", mode=0, compile_mm_encoder=False
    )
    rows: list[dict[str, Any]] = []
    with providers.single_process(config):
        truth = providers.provider(case, "truth", case.stock, config, plan.dtype)
        truths = {
            size: truth(towers.inputs(case, truth.tower, size)) for size in plan.sizes
        }
        del truth
        gc.collect()
        sides = [
            side
            for side in providers.providers(case, checkpoint, plan.dtype)
            if side.name != DEFAULT
        ]
        native = providers.native(case, checkpoint, plan.dtype)
        rates = _rates(plan.dtype)
        for size in plan.sizes:
            inputs = towers.inputs(case, sides[0].tower, size)
            found = providers.check(sides, truths[size], inputs, size)
            ours = next(side for side in sides if side.name == OURS)
            calls: dict[str, tuple[Provider, Callable[[], Any]]] = {
                side.name: (side, partial(case.call, side.tower, *inputs))
                for side in sides
            }
            if (replay := _replay(case, ours, inputs)) is not None:
                calls[GRAPH] = ours, replay
            times = _interleaved(plan, calls)
            for row in found:
                side, call = calls[row["provider"]]
                row["kernels"] = _kernels(side, call)
                row["waits"] = None
                if side is ours:
                    row["waits"] = _waits(side, _past_lengths(case, side, inputs, call))
            if replay is not None:
                found.append(_checked_replay(ours, replay, truths[size], found[-1]))
            for row in found:
                spent = spread(times[row["provider"]])
                row |= {f"{key}_ms": 1000 * value for key, value in spent.items()}
                row["rounds"] = len(times[row["provider"]])
            native_inputs = towers.inputs(case, native.tower, size)
            floor = floor_of(native.tower, partial(native, native_inputs))
            flops = floor.product_flops + floor.attention_flops
            seconds = max(flops / rates["flops"], floor.bytes / rates["bytes"])
            rows += found
            rows.append(
                {
                    "provider": FLOOR,
                    "size": size,
                    "median_ms": 1000 * seconds,
                    "gflops": flops / 1e9,
                    "megabytes": floor.bytes / 1e6,
                }
            )
    return {"plan": asdict(plan), "unit": case.unit, "rates": rates, "rows": rows}


def _interleaved(
    plan: Plan, calls: "dict[str, tuple[Provider, Callable[[], Any]]]"
) -> dict[str, list[float]]:
    """Seconds of each call; the calls take turns, each round begins with another."""
    from vllm_mmc.prove import towers

    turns = list(calls.items())
    times: dict[str, list[float]] = defaultdict(list)
    deadline = time.monotonic() + plan.seconds
    gc.collect()
    gc.disable()
    for i in range(1 + plan.rounds):
        if i > 1 and time.monotonic() > deadline:
            break
        for name, (side, call) in (*turns[i % len(turns) :], *turns[: i % len(turns)]):
            with side.active():
                taken, _ = towers.seconds(call)
            if i:  # the first round warms up
                times[name].append(taken)
    gc.enable()
    return times


def _past_lengths(
    case: Case, ours: "Provider", inputs: tuple[Any, ...], call: Callable[[], Any]
) -> Callable[[], Any]:
    """The call, or what follows the lengths if the host reads these from the device."""
    if not case.reads_lengths:
        return call
    with ours.active():
        return case.graph_call(ours.tower, *inputs) or call


def _waits(side: "Provider", call: Callable[[], Any]) -> str | None:
    """Where the host waits for the device in a call, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with side.active():
            call()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None


def _kernels(side: "Provider", call: Callable[[], Any]) -> int:
    """Kernels that the device ran in a call; of a CPU, PyTorch's operators."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from vllm_mmc.prove import towers

    on_gpu = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with side.active(), profile(activities=[activity]) as profiled:
        call()
        towers.synchronize()
    if on_gpu:
        return sum(e.device_type == DeviceType.CUDA for e in profiled.events())
    return sum(e.cpu_parent is None for e in profiled.events())


def _replay(
    case: Case, ours: "Provider", inputs: tuple[Any, ...]
) -> Callable[[], Any] | None:
    """The call in a CUDA graph: what replays it, and returns its output."""
    import torch

    with ours.active():
        call = case.graph_call(ours.tower, *inputs)
        if call is None or not torch.cuda.is_available():
            return call
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()

    def replay(kept: Callable[[], Any] = call) -> Any:
        # The graph reads the tensors that `call` has made, and does not keep them.
        graph.replay()
        return output

    return replay


def _checked_replay(
    ours: "Provider", replay: Callable[[], Any], truth: Any, row: dict[str, Any]
) -> dict[str, Any]:
    from vllm_mmc.prove.parity import rms_ratio

    with ours.active():
        error = rms_ratio(replay(), truth)
    allowed = row["rms_allowed"]
    return {
        "provider": GRAPH,
        "size": row["size"],
        "equal": error <= allowed,
        "rms_to_truth": error,
        "rms_allowed": allowed,
        "waits": None,
        "kernels": None,
    }


def _rates(dtype: str) -> dict[str, float]:
    """What the device does in a second: FLOP of a large product, bytes of a copy."""
    import torch
    from vllm.platforms import current_platform

    from vllm_mmc.prove import towers

    on_cpu = current_platform.is_cpu()
    side, megabytes = (512, 32) if on_cpu else (8192, 1024)
    device = current_platform.device_type
    a, b = torch.randn(2, side, side, dtype=getattr(torch, dtype), device=device)
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def best(call: Callable[[], Any]) -> float:
        return min(towers.seconds(call)[0] for _ in range(5))

    return {
        "flops": 2 * side**3 / best(lambda: a @ b),
        "bytes": 2 * source.numel() / best(lambda: target.copy_(source)),
    }


def problems(found: dict[str, Any]) -> Iterator[str]:
    """Returns, in words, what is not as it must be in the result of `measure`."""
    name, unit = found["plan"]["arch"], found["unit"]
    for row in found["rows"]:
        place = f"{name}, {row['size']} {unit}, {row['provider']}"
        if not row.get("equal", True):
            yield (
                f"{place}: error {row['rms_to_truth']:.3g}, allowed "
                f"{row['rms_allowed']:.3g}"
            )
        if row.get("waits"):
            yield f"{place}: the host waits for the device: {row['waits']}"


def _main(spec: Path) -> None:
    given = json.loads(spec.read_text())
    plan = Plan(**given | {"sizes": tuple(given["sizes"])})
    found = measure(plan, spec.parent)
    (spec.parent / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
