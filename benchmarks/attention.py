# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Milliseconds of encoder attention on CPU: vLLM's, ours, and each of our providers.

All take turns on the same views of one qkv buffer. A case is timed only if all of ours
agree with fp64 as well as vLLM's does.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from vllm.v1.attention.ops.vit_attn_wrappers import torch_sdpa_wrapper

from vllm_mmc.attention import cpu_choice, cpu_kernel, vit_attn_wrappers

STOCK, OURS, SDPA = "stock", "varlen_attention", "batched_sdpa"
Lengths = list[int]
Clock = Callable[[], float]
CASES: dict[str, tuple[Lengths, int, int]] = {  # lengths, heads, head size
    "1500 x 12 x 64": ([1500], 12, 64),
    "4096 x 16 x 80": ([4096], 16, 80),
    "577 x 2 items x 16 x 88": ([577] * 2, 16, 88),
    "1, 7, 64, 129, 300, 1000 and 33 x 16 x 80": (
        [1, 7, 64, 129, 300, 1000, 33],
        16,
        80,
    ),
    "1536 in windows of 64 x 16 x 80": ([64] * 24, 16, 80),
    "256 items of 16 x 16 x 80": ([16] * 256, 16, 80),
    "256 items of 16 x 12 x 64": ([16] * 256, 12, 64),
}
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
}
FLAGS = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_fp16"),
)
GRID = {
    f"{items} x {tokens} x {heads} x {size}": ([tokens] * items, heads, size)
    for size, heads in ((64, 12), (72, 16), (80, 16), (88, 16), (128, 8))
    for items, tokens in (
        *((1, tokens) for tokens in (16, 40, 64, 100, 256, 577, 1024, 4096)),
        *((items, 16) for items in (4, 32, 256)),
        *((items, 64) for items in (4, 64, 256)),
        *((items, 200) for items in (4, 32)),
        *((items, 729) for items in (2, 8)),
    )
} | {"1 x 16384 x 4 x 64": ([16384], 4, 64), "1 x 16384 x 4 x 80": ([16384], 4, 80)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="default: all")
    parser.add_argument("--grid", action="store_true", help="many sizes, few rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each case")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="one thread and its CPU time, for a machine that does other things, too",
    )
    default = harness.REPOSITORY / "build" / "benchmarks" / "attention.json"
    parser.add_argument("--json", type=Path, default=default, metavar="OUT")
    args = parser.parse_args()

    torch.manual_seed(0)
    hold_ours_to_pytorch()
    if args.busy:
        torch.set_num_threads(1)
    clock = time.process_time if args.busy else time.perf_counter
    environment = harness.environment() | {
        "cpu_kind": cpu_choice.kind(),
        "cpu_flags": [flag for flag in FLAGS if flag in cpu_flags()],
        "clock": "CPU time" if args.busy else "wall",
    }
    rows, wrong = [], 0
    for dtype in args.dtypes.split(","):
        rate = matrix_product_rate(DTYPES[dtype], clock)
        for name, case in (GRID if args.grid else CASES).items():
            row = measure(*case, DTYPES[dtype], args.seconds, clock)
            wrong += "ms" not in row
            if "ms" in row:
                row["share"] = row["gflops"] / rate
            rows.append({"case": name, "dtype": dtype, "gflops_products": rate} | row)
            report(rows[-1])
    harness.write_json(args.json, {"environment": environment, "rows": rows})
    return 1 if wrong else 0


def hold_ours_to_pytorch() -> None:
    """With ATEN_CPU_CAPABILITY=avx2 our kernel, too, has no more than AVX2."""
    library = cpu_kernel._library()
    if library is None or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return
    names = [name for name, _ in library.states]
    beyond = names[: names.index("avx2")]
    library.levels = tuple(name for name in library.levels if name not in beyond)
    library.states = tuple(
        (name, cpu_kernel.State.NOT_OF_PROCESSOR if name in beyond else state)
        for name, state in library.states
    )


def cpu_flags() -> set[str]:
    return set(Path("/proc/cpuinfo").read_text().split())


def matrix_product_rate(dtype: torch.dtype, clock: Clock) -> float:
    """GFLOP/s of a linear layer of an encoder: 2048 tokens, 1280 -> 3840."""
    x, weight = (
        torch.randn(2048, 1280, dtype=dtype),
        torch.randn(3840, 1280, dtype=dtype),
    )
    seconds = [
        timed(lambda: torch.nn.functional.linear(x, weight), clock) for _ in range(7)
    ]
    return 2 * 2048 * 1280 * 3840 / harness.spread(seconds)["median"] / 1e9


def measure(
    lengths: Lengths,
    heads: int,
    size: int,
    dtype: torch.dtype,
    seconds: float,
    clock: Clock,
) -> dict[str, Any]:
    tokens = sum(lengths)
    q, k, v = torch.randn(1, tokens, 3, heads, size).to(dtype).unbind(2)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    dense = (
        []
        if len(lengths) > 2
        else [x.view(len(lengths), -1, heads, size) for x in (q, k, v)]
    )
    paths = list(cpu_kernel.levels())
    if dtype is not torch.bfloat16:  # they are for bf16 alone
        paths = [x for x in paths if x not in ("amx", "avx512_bf16")]

    def ours(provider: str) -> Callable[[], torch.Tensor]:
        return lambda: vit_attn_wrappers.varlen_attention(
            q, k, v, None, cu_seqlens, None, provider
        )

    calls: dict[str, Callable[[], torch.Tensor]] = {
        # Items of a batch come to vLLM's as a batch, windows as cu_seqlens.
        STOCK: (lambda: torch_sdpa_wrapper(*dense))
        if len(lengths) <= 2
        else (lambda: torch_sdpa_wrapper(q, k, v, None, cu_seqlens)),
        OURS: ours(cpu_choice.AUTO),
        SDPA: ours(cpu_choice.SDPA),
        **{path: ours(path) for path in paths[:2]},
    }
    part = slice(tokens - min(lengths[-1], 300), tokens)  # queries; fp64 is slow
    keys = slice(tokens - lengths[-1], tokens)
    scores = torch.einsum(
        "qhd,khd->hqk", q[0, part].double() * size**-0.5, k[0, keys].double()
    )
    truth = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[0, keys].double())
    errors = {}
    for name, call in calls.items():
        found = call().reshape(q.shape)[0, part]
        errors[name] = (found.double() - truth).square().mean().sqrt().item()
    if max(errors.values()) > 2 * errors[STOCK] + 1e-7:
        return {"errors": errors}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[STOCK]) < 5:
        for name, call in calls.items():
            times[name].append(timed(call, clock))
    medians = {name: harness.spread(found)["median"] for name, found in times.items()}
    flops = sum(4 * n * n * size * heads for n in lengths)
    return {
        "ms": {name: 1e3 * found for name, found in medians.items()},
        "least_ms": {name: 1e3 * min(found) for name, found in times.items()},
        "ratio": {name: medians[STOCK] / found for name, found in medians.items()},
        "gflops": flops / medians[OURS] / 1e9,
        "parts": cpu_choice.parts(dtype),
        "errors": errors,
        "rounds": len(times[STOCK]),
    }


def timed(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def report(row: dict[str, Any]) -> None:
    if "ms" not in row:
        print(f"{row['case']:34} {row['dtype']:9} WRONG {row['errors']}")
        return
    ms, ratio = row["ms"], row["ratio"]
    print(
        f"{row['case']:34} {row['dtype']:9}"
        + "".join(f"  {name} {ms[name]:8.3f} ms ({ratio[name]:5.2f} x)" for name in ms)
        + f"  {row['share']:.0%} of the matrix-product rate",
        flush=True,
    )


if __name__ == "__main__":
    if not cpu_kernel.levels():
        sys.exit("the CPU kernel was not built: install a C++ compiler, then vllm_mmc")
    sys.exit(main())
