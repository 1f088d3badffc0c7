# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Where the time of one encoder call goes, by kind of operation: stock eager and ours.

Of eager modules the kind is known; compiled kernels are told by the operations that
Inductor names them after. See benchmarks/README.md.
"""

import argparse
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import harness
from encoder_forward import DTYPES

from vllm_mmc.prove.cases import CASES, Case
from vllm_mmc.prove.providers import EAGER, OURS, config_for, provider

PRODUCTS, ATTENTION, NORM = "products", "attention", "normalisation"
ROTARY, ACTIVATION, COPIES = "rotary", "activation", "copies, gathers, additions"
REST = "Python, memory"
KINDS = (PRODUCTS, ATTENTION, NORM, ROTARY, ACTIVATION, COPIES, REST)
# Of compiled graphs, in this order.
NAMES = {
    REST: r"^(## |Pregraph|Torch-Compiled)",
    ACTIVATION: r"cpp_fused.*_(gelu|silu)_|^(aten|vllm_mmc)::gelu",
    NORM: r"cpp_fused.*_(rsqrt|layer_norm)_|^aten::native_layer_norm",
    ROTARY: r"cpp_fused.*_sub_",
    COPIES: r"cpp_fused",
    ATTENTION: r"attention",
    PRODUCTS: r"onednn_mm|mkldnn|convolution|^aten::(mm|addmm|linear)$",
}
ROUNDS = 9


def main() -> int:
    parser = harness.parser("encoder_profile", __doc__)
    parser.add_argument("--depth", type=int, help="blocks (default: that of the case)")
    parser.add_argument("--size", type=int, help="default: the first of the case")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    args = parser.parse_args()
    case = CASES[args.arch]
    args.depth = args.depth or case.forward_depth
    args.size = args.size or case.forward_sizes[0]
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-bench-") as name:
        caches = harness.cache_environment(Path(name), Path(name) / "model-notes")
        os.environ.update(caches)
        os.environ.update(VLLM_PLUGINS="", VLLM_LOGGING_LEVEL="ERROR")
        _run(case, args, Path(name))
    return 0


def _run(case: Case, args: argparse.Namespace, directory: Path) -> None:
    from torch._inductor import config as inductor

    from mmc_testing.engine import tower_context
    from vllm_mmc.prove import towers

    environment = harness.environment()
    checkpoint = case.checkpoint(
        directory / "checkpoint", depth=args.depth, dtype=args.dtype, blocks="real"
    )
    calls: dict[str, list[dict[str, float]]] = {EAGER: [], OURS: []}
    with (
        tower_context(checkpoint, dtype=args.dtype, **case.engine_args),
        inductor.patch({"cpp.enable_kernel_profile": True}),
    ):
        sides = {}
        for name, target, compilation in (
            (EAGER, case.stock, {"mode": 0}),
            (OURS, case.ours, {"compile_mm_encoder": True}),
        ):
            config = config_for(case, checkpoint, args.dtype, **compilation)
            side = provider(case, name, target, config, args.dtype)
            sides[name] = side, towers.inputs(case, side.tower, args.size)
            for _ in range(2):
                side(sides[name][1])
        for turn in range(ROUNDS):
            for name in sorted(sides, reverse=bool(turn % 2)):
                side, inputs = sides[name]
                # Hooks would be compiled as well.
                named = _named_modules if name == EAGER else contextlib.nullcontext
                with named(side.tower):
                    calls[name].append(_profile(side, inputs))
    found = {
        name: {kind: statistics.median(call[kind] for call in rounds) for kind in KINDS}
        for name, rounds in calls.items()
    }
    print(
        f"\n{args.arch}, {args.depth} blocks, {args.size} {case.unit}, {args.dtype}\n"
    )
    totals = {name: sum(kinds.values()) for name, kinds in found.items()}
    harness.print_table(
        ("milliseconds of one call", *found),
        [
            *((kind, *(kinds[kind] for kinds in found.values())) for kind in KINDS),
            ("all", *totals.values()),
        ],
    )
    harness.write_json(
        args.json or harness.default_output("encoder_profile", args.arch),
        {
            "benchmark": "encoder_profile",
            "arch": args.arch,
            "unit": case.unit,
            "size": args.size,
            "environment": environment | {"load_average_after": os.getloadavg()[0]},
            "protocol": {"depth": args.depth, "dtype": args.dtype, "rounds": ROUNDS},
            "milliseconds": found,
        },
    )


@contextlib.contextmanager
def _named_modules(tower: Any) -> Any:
    """Makes the profiler see which kind of module runs."""
    from torch import nn
    from torch.profiler import record_function
    from vllm.model_executor.layers import activation, layernorm
    from vllm.model_executor.layers.attention import MMEncoderAttention
    from vllm.model_executor.layers.conv import ConvLayerBase
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.rotary_embedding import common
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

    norms = nn.LayerNorm, layernorm.RMSNorm
    activations = nn.GELU, nn.SiLU, activation.GELU, activation.SiluAndMul
    kinds: dict[str, tuple[type[Any], ...]] = {
        PRODUCTS: (LinearBase, nn.Linear, nn.Conv1d, nn.Conv2d, ConvLayerBase),
        ATTENTION: (MMEncoderAttention,),
        NORM: norms,
        ROTARY: (common.ApplyRotaryEmb, RotaryEmbeddingBase),
        ACTIVATION: activations,
    }
    running = []

    def enter(kind: str) -> None:
        running.append(record_function(f"kind:{kind}"))
        running[-1].__enter__()

    with contextlib.ExitStack() as hooks:
        for module in tower.modules():
            for kind, classes in kinds.items():
                if isinstance(module, classes):
                    before = module.register_forward_pre_hook(
                        lambda *_, kind=kind: enter(kind)
                    )
                    after = module.register_forward_hook(
                        lambda *_: running.pop().__exit__(None, None, None)
                    )
                    hooks.callback(before.remove)
                    hooks.callback(after.remove)
        yield


def _profile(provider: Any, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Returns milliseconds per kind of one call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        begun = time.perf_counter()
        provider(inputs)
        wall = 1000 * (time.perf_counter() - begun)
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events():
        spent[_kind(event)] += event.self_cpu_time_total / 1000
    spent[REST] += wall - sum(spent.values())
    return {kind: spent[kind] for kind in KINDS}


def _kind(event: Any) -> str:
    if event.name.startswith("kind:"):
        return REST
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("kind:"):
            return parent.name.removeprefix("kind:")
        parent = parent.cpu_parent
    for kind, pattern in NAMES.items():
        if re.search(pattern, event.name):
            return kind
    return COPIES


if __name__ == "__main__":
    sys.exit(main())
