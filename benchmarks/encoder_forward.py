# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Milliseconds of one encoder call: stock eager, stock compiled, ours, and the floor.

All towers live in one process with the same weights and take turns. Nothing is reported
unless they agree. See benchmarks/README.md.
"""

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
from cases import CASES, Case

EAGER = "stock eager"
DEFAULT = "stock default"
COMPILED = "stock compiled"
OURS = "ours"
FLOOR = "floor"
DTYPES = ("bfloat16", "float32", "float16")
WARM_UP_ROUNDS = 1  # beside the call that was checked
FEWEST_ROUNDS = 5
COLUMNS = {
    "provider": "provider",
    "size": "size",
    "median": "median_ms",
    "p20": "p20_ms",
    "p80": "p80_ms",
    "x stock eager": "speedup_to_stock_eager",
    "x stock compiled": "speedup_to_stock_compiled",
    "/ floor": "times_floor",
    "rounds": "rounds",
    "graphs": "graphs",
    "RMS": "rms_to_truth",
    "allowed": "rms_allowed",
}


def main() -> int:
    parser = harness.parser("encoder_forward", __doc__)
    parser.add_argument("--depth", type=int, help="blocks (default: that of the case)")
    parser.add_argument(
        "--patches",
        "--sizes",
        dest="sizes",
        type=harness.numbers,
        help="input sizes (default: those of the case)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument(
        "--rounds", type=int, default=15, help="per size (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="after which a size gets no more rounds, once it has had"
        f" {FEWEST_ROUNDS} (default: %(default)s)",
    )
    args = parser.parse_args()
    case = CASES[args.arch]
    args.depth = args.depth or case.forward_depth
    args.sizes = args.sizes or list(case.forward_sizes)
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-bench-") as name:
        # Before vLLM is imported: caches that nobody used before, and no plugin.
        caches = harness.cache_environment(Path(name), Path(name) / "model-notes")
        os.environ.update(caches)
        # Stock cannot load its own artifacts on CPU and warns at every block.
        os.environ.update(VLLM_PLUGINS="", VLLM_LOGGING_LEVEL="ERROR")
        return _run(case, args, Path(name))


def _run(case: Case, args: argparse.Namespace, directory: Path) -> int:
    import towers

    from mmc_testing.engine import tower_context

    environment = harness.environment()
    checkpoint = case.checkpoint(
        directory / "checkpoint", depth=args.depth, dtype=args.dtype, blocks="real"
    )
    rows, red = [], []
    # One context, for the process groups of all towers; its config is the truth's.
    with tower_context(checkpoint, dtype="float32", **case.engine_args) as config:
        truth = _provider(case, "truth", case.stock, config, args.dtype)
        truths = {
            size: truth(towers.inputs(case, truth.tower, size)) for size in args.sizes
        }
        # Now: vLLM's destructor of a packed weight fails if it runs while tracing.
        del truth
        gc.collect()
        providers = _providers(case, checkpoint, args.dtype)
        native = _native(case, checkpoint, args.dtype)
        for size in args.sizes:
            item = towers.inputs(case, providers[0].tower, size)  # of another dtype
            checked = _check(providers, truths[size], item, size)
            red += [row for row in checked if not row["equal"]]
            if not red:
                rows += _time(providers, native, item, args, checked)
                print(f"{size} {case.unit}: done", file=sys.stderr)
    if red:
        for row in red:
            print(
                f"encoder_forward: {row['provider']} is wrong at {row['size']} "
                f"{case.unit}: RMS error ratio {row['rms_to_truth']:.3g}, allowed "
                f"{row['rms_allowed']:.3g}. No time is reported.",
                file=sys.stderr,
            )
        return 1
    _print(args, rows)
    harness.write_json(
        args.json or harness.default_output("encoder_forward", args.arch),
        {
            "benchmark": "encoder_forward",
            "arch": args.arch,
            "unit": case.unit,
            "environment": environment | {"load_average_after": os.getloadavg()[0]},
            "protocol": {
                "depth": args.depth,
                "dtype": args.dtype,
            },
            "rows": rows,
        },
    )
    return 0


# ---------------------------------------------------------------- towers


@dataclass
class Provider:
    """One way to run the encoder: a tower, and the config that it was built with."""

    name: str
    case: Case
    tower: Any
    vllm_config: Any
    graphs: int = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """What a worker of this config has set while it runs."""
        import torch
        import vllm.ir

        wrap = self.vllm_config.compilation_config.ir_enable_torch_wrap
        priority = self.vllm_config.kernel_config.ir_op_priority
        with (
            torch.inference_mode(),
            priority.set_priority(),
            vllm.ir.enable_torch_wrap(wrap),
        ):
            yield

    def __call__(self, inputs: tuple[Any, ...]) -> Any:
        with self.active():
            return self.case.call(self.tower, *inputs)


def _config(case: Case, checkpoint: Path, dtype: str, **compilation: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_mmc.demo.engine import default_engine_args

    engine_args = default_engine_args(
        checkpoint,
        dtype=dtype,
        mm_device_do_normalize=False,
        compilation_config=compilation,
        **case.engine_args,
    )
    return EngineArgs(**engine_args).create_engine_config()


def _provider(case: Case, name: str, target: str, config: Any, dtype: str) -> Provider:
    import towers
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(config):
        tower = towers.build(case, target, config, dtype)
    return Provider(name, case, tower, config)


def _providers(case: Case, checkpoint: Path, dtype: str) -> list[Provider]:
    """Builds a tower per provider.

    - stock eager: nothing is compiled (vLLM's mode 0, `--enforce-eager`).
    - stock default: vLLM as it starts, compile_mm_encoder off. The text model is
      compiled, and in the encoder the activation alone.
    - stock compiled, ours: the same with compile_mm_encoder on. The first of them only
      if vLLM compiles this encoder.
    """
    eager = _config(case, checkpoint, dtype, mode=0, compile_mm_encoder=False)
    off, on, on_too = (
        _config(case, checkpoint, dtype, compile_mm_encoder=switch)
        for switch in (False, True, True)
    )
    found = [
        _provider(case, EAGER, case.stock, eager, dtype),
        _provider(case, DEFAULT, case.stock, off, dtype),
        _provider(case, OURS, case.ours, on_too, dtype),
    ]
    if case.stock_compiles:
        found.insert(2, _provider(case, COMPILED, case.stock, on, dtype))
    return found


def _native(case: Case, checkpoint: Path, dtype: str) -> Provider:
    """Builds an eager encoder of vLLM's layers, whose products are the floor's.

    They are in float32 if the CPU multiplies that faster than `dtype`.
    """
    import torch

    from vllm_mmc.layers.upcast import needs_upcast

    product_dtype = "float32" if needs_upcast(getattr(torch, dtype)) else dtype
    config = _config(case, checkpoint, product_dtype, mode=0, compile_mm_encoder=False)
    target = case.stock if case.stock_is_native else case.ours
    return _provider(case, FLOOR, target, config, dtype)


# ---------------------------------------------------------------- are they equal?


def _check(
    providers: list[Provider], truth: Any, inputs: tuple[Any, ...], size: int
) -> list[dict[str, Any]]:
    """Calls each provider once and compares it with the float32 encoder.

    Raises:
        RuntimeError: if something compiles that must not, or the other way round.
    """
    from torch._dynamo.utils import counters as dynamo
    from vllm.compilation.counter import compilation_counter

    from mmc_testing.parity import allowance, rms_ratio

    rows = []
    for provider in providers:
        graphs = compilation_counter.num_aot_compiles
        frames = dynamo["frames"]["total"]
        output = provider(inputs)
        graphs = compilation_counter.num_aot_compiles - graphs
        provider.graphs += graphs
        if provider.name == EAGER:
            reference = output
            if graphs or dynamo["frames"]["total"] != frames:
                raise RuntimeError(f"{EAGER} compiled something")
        compiles = provider.name in (COMPILED, OURS)
        if compiles != bool(provider.graphs):
            raise RuntimeError(f"{provider.name} compiled {provider.graphs} graphs")
        allowed = allowance(reference=reference, truth=truth)
        to_truth = rms_ratio(output, truth)
        rows.append(
            {
                "provider": provider.name,
                "size": size,
                "equal": to_truth <= allowed,
                "rms_to_truth": to_truth,
                "rms_to_eager": rms_ratio(output, reference),
                "rms_allowed": allowed,
                "graphs": provider.graphs,
                "graphs_this_size": graphs,
            }
        )
    return rows


# ---------------------------------------------------------------- the floor


@dataclass
class Floor:
    """The matrix products of one call, and the attention's operations.

    Attributes:
        products: (rows, in, out, bias?) -> a function per occurrence: each has the
            weights of its own layer, so that none is found in a CPU cache where the
            encoder would have to fetch it.
        product_flops: of all of them.
        attention_flops: of Q K^T and P V, 4 S^2 H D per sequence.
    """

    products: dict[tuple[Any, ...], list[Callable[[], Any]]]
    product_flops: int
    attention_flops: int

    def seconds(self, medians: Mapping[Any, float]) -> float:
        """Returns the floor, from the median seconds of each shape's occurrences."""
        products = sum(medians[shape] for shape in self.products)
        return products * (1 + self.attention_flops / self.product_flops)


def _floor(tower: Any, run: Callable[[], Any]) -> Floor:
    """Watches one eager call.

    Args:
        tower: an eager encoder.
        run: calls it.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F
    from vllm.model_executor.layers.attention import MMEncoderAttention
    from vllm.model_executor.layers.conv import ConvLayerBase
    from vllm.model_executor.layers.linear import LinearBase

    products: dict[tuple[Any, ...], list[Callable[[], Any]]] = defaultdict(list)
    attention_flops = 0
    vectors: dict[tuple[int, int], Any] = {}

    def product(module: Any, rows: int, inner: int, outer: int) -> None:
        weight_dtype = next(module.parameters()).dtype
        x = vectors.setdefault((rows, inner), torch.randn(rows, inner).to(weight_dtype))
        bias = getattr(module, "bias", None)
        if isinstance(module, LinearBase):
            apply = partial(module.quant_method.apply, module, x, bias)
        else:
            apply = partial(F.linear, x, module.weight.reshape(outer, inner), bias)
        products[rows, inner, outer, bias is not None].append(apply)

    def linear(module: Any, args: Any) -> None:
        sizes = (
            (
                getattr(module, "input_size_per_partition", module.input_size),
                getattr(module, "output_size_per_partition", module.output_size),
            )
            if isinstance(module, LinearBase)
            else (module.in_features, module.out_features)
        )
        product(module, args[0].numel() // sizes[0], *sizes)

    def patches(module: Any, args: Any) -> None:
        if not module.enable_linear:
            raise NotImplementedError("the floor does not know overlapping patches")
        rows = args[0].numel() // module.input_size
        product(module, rows, module.input_size, module.out_channels)

    def convolution(module: Any, args: Any, output: Any) -> None:
        # As one product of all windows, laid out in rows.
        rows = output.numel() // module.out_channels
        product(module, rows, module.weight[0].numel(), module.out_channels)

    def attention(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal attention_flops
        names = ("query", "key", "value", "cu_seqlens")
        given = dict(zip(names, args, strict=False)) | kwargs
        query = given["query"]
        batch, length = query.shape[:2] if query.dim() > 2 else (1, len(query))
        lengths = torch.full((batch,), length)
        if (cu_seqlens := given.get("cu_seqlens")) is not None:
            lengths = cu_seqlens.diff().repeat(batch)
        pairs = int(lengths.long().square().sum())
        attention_flops += 4 * pairs * module.num_heads * module.head_size

    with contextlib.ExitStack() as hooks:
        for name, module in tower.named_modules():
            watch, with_kwargs = None, False
            if isinstance(module, (LinearBase, nn.Linear)):
                watch = linear
            elif isinstance(module, ConvLayerBase):
                watch = patches
            elif isinstance(module, MMEncoderAttention):
                watch, with_kwargs = attention, True
            elif isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1:
                hooks.callback(module.register_forward_hook(convolution).remove)
            elif isinstance(module, (nn.modules.conv._ConvNd, nn.MultiheadAttention)):
                raise NotImplementedError(f"the floor does not know {name}: {module}")
            if watch is not None:
                handle = module.register_forward_pre_hook(
                    watch, with_kwargs=with_kwargs
                )
                hooks.callback(handle.remove)
        run()
    flops = sum(
        2 * rows * inner * outer * len(calls)
        for (rows, inner, outer, _), calls in products.items()
    )
    return Floor(dict(products), flops, attention_flops)


# ---------------------------------------------------------------- time


def _time(
    providers: list[Provider],
    native: Provider,
    inputs: tuple[Any, ...],
    args: argparse.Namespace,
    checked: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Lets the providers and the floor's shapes take turns; returns a row for each.

    Args:
        native: whose products are the floor's.
    """
    import towers

    size = checked[0]["size"]
    native_inputs = towers.inputs(native.case, native.tower, size)
    floor = _floor(native.tower, lambda: native(native_inputs))

    def all_of(calls: list[Callable[[], Any]]) -> None:
        for call in calls:
            call()

    times: dict[Any, list[float]] = defaultdict(list)
    turns: list[tuple[Any, Provider, Callable[[], Any]]] = [
        *((p.name, p, partial(p.case.call, p.tower, *inputs)) for p in providers),
        *((s, native, partial(all_of, c)) for s, c in floor.products.items()),
    ]
    gc.collect()
    gc.disable()
    deadline = time.monotonic() + 60 * args.minutes
    for i in range(WARM_UP_ROUNDS + args.rounds):
        if i >= WARM_UP_ROUNDS + FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        # Each round begins with another one: nobody always comes after the same.
        first = i % len(turns)
        for name, provider, call in (*turns[first:], *turns[:first]):
            with provider.active():
                taken, _ = towers.seconds(call)
            if i >= WARM_UP_ROUNDS:
                times[name].append(taken)
    gc.enable()
    rounds = len(times[EAGER])

    found = {row["provider"]: row for row in checked}
    spreads = {name: harness.spread(values) for name, values in times.items()}
    floor_ms = 1000 * floor.seconds({s: spreads[s]["median"] for s in floor.products})
    rows = []
    for provider in providers:
        ms = {key: 1000 * value for key, value in spreads[provider.name].items()}
        rows.append(
            found[provider.name]
            | {f"{key}_ms": value for key, value in ms.items()}
            | {
                "rounds": rounds,
                "speedup_to_stock_eager": _ratio(spreads, EAGER, provider.name),
                "speedup_to_stock_compiled": _ratio(spreads, COMPILED, provider.name),
                "times_floor": ms["median"] / floor_ms,
            }
        )
    products = sum(spreads[shape]["median"] for shape in floor.products)
    rows.append(
        {
            "provider": FLOOR,
            "size": size,
            "median_ms": floor_ms,
            "products_ms": 1000 * products,
            "attention_ms": floor_ms - 1000 * products,
            "product_gflops": floor.product_flops / 1e9,
            "attention_gflops": floor.attention_flops / 1e9,
            "gflops_per_second": floor.product_flops / products / 1e9,
            "rounds": rounds,
            "shapes": [
                {
                    "rows_in_out_bias": list(shape),
                    "occurrences": len(calls),
                    "all_ms": 1000 * spreads[shape]["median"],
                }
                for shape, calls in floor.products.items()
            ],
        }
    )
    return rows


def _ratio(spreads: dict[Any, dict[str, float]], of: str, to: str) -> float | None:
    if of not in spreads:
        return None
    return spreads[of]["median"] / spreads[to]["median"]


def _print(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{args.arch}, {args.depth} blocks, {args.dtype}, one call, milliseconds;"
        " RMS: error ratio to the float32 encoder\n"
    )
    harness.print_table(
        COLUMNS, [[row.get(k) for k in COLUMNS.values()] for row in rows]
    )


if __name__ == "__main__":
    sys.exit(main())
