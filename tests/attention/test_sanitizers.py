# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The CPU kernel under AddressSanitizer and UndefinedBehaviorSanitizer.

The AMX path is among those that run: where there is no AMX, with emulated instructions.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_mmc.attention import cpu_kernel

SOURCES = Path(__file__).parents[2] / "csrc" / "cpu"
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined"]

# Every tensor is an allocation of its own: what is read or written beyond it is seen.
MAIN = """
import sys
import torch
from vllm_mmc.attention import cpu_kernel

library = cpu_kernel._Library(sys.argv[1])
cpu_kernel._library = lambda: library
slow = {"plain_amx", "plain_avx512_bf16", sys.argv[2]}
tiles = slow | {"amx", "avx512_bf16"}
calls = dict.fromkeys(library.levels, 0)
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    for lengths in ([0, 1, 64, 65, 17, 0, 130, 3], [16] * 6, [63, 129], [200], [577]):
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        ends = torch.cat([torch.arange(n) // 50 * 50 + 50 for n in lengths])
        for size in (7, 32, 64, 72, 80, 88, 128):
            for dtype in cpu_kernel.DTYPES:
                for heads, kv_heads in ((2, 2), (4, 2)):
                    q, k, v = (
                        torch.randn(1, sum(lengths), h, size).to(dtype)
                        for h in (heads, kv_heads, kv_heads)
                    )
                    for level in library.levels:
                        if level in tiles and dtype != torch.bfloat16:
                            continue
                        if level in slow and (threads, heads) != (2, 2):
                            continue
                        if level in slow and 577 in lengths:
                            continue
                        for seen in (None, ends):
                            cpu_kernel.varlen_attention(
                                q, k, v, 0.1, bounds, seen, level
                            )
                            calls[level] += 1
print(*calls.items(), sep="\\n")
"""


@pytest.mark.slow  # a build without optimisation, and some 4000 calls of it
def test_no_access_outside_and_nothing_undefined(tmp_path: Path) -> None:
    library = tmp_path / "kernel.so"
    files = sorted(map(str, SOURCES.glob("*.cpp")))
    flags, emulated = FLAGS, "none"
    if "amx" not in cpu_kernel.levels():
        header = Path(__file__).with_name("emulated_amx.h")
        flags, emulated = [*FLAGS, f'-DEMULATED_AMX="{header}"'], "amx"
    subprocess.run([CXX, *flags, *files, "-o", library], check=True)
    runtimes = [
        subprocess.run(
            [CXX, f"-print-file-name={name}.so"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("libasan", "libubsan")
    ]
    result = subprocess.run(
        [sys.executable, "-c", MAIN, library, emulated],
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(runtimes),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "runtime error" not in result.stderr
    calls = dict(map(ast.literal_eval, result.stdout.splitlines()))
    assert calls["portable"] == 3 * 5 * 7 * 3 * 2 * 2
    assert calls["plain_amx"] == calls["plain_avx512_bf16"] == 4 * 7 * 2
    assert set(calls) >= set(cpu_kernel.levels())
    assert ("amx" in calls) == ("avx512_bf16" in calls)
