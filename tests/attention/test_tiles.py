# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""bf16 in tiles: instructions and plain C++ agree to the bit, and round no worse than
PyTorch.

What `test_vit_attn_wrappers.py` asks of every path is not repeated here.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.v1.attention.ops.vit_attn_wrappers import torch_sdpa_wrapper

from vllm_mmc.attention import cpu_kernel
from vllm_mmc.attention.reference import attention_reference

SOURCES = Path(__file__).parents[2] / "csrc" / "cpu"
CXX = os.environ.get("CXX", "g++")
TILES = ["amx", "avx512_bf16"]
PLAIN = [f"plain_{name}" for name in TILES]
HERE = [level for level in cpu_kernel.levels() if level in TILES + PLAIN]
# One key, one panel, one block of keys, and one more of each; empty ones between.
LENGTHS = [0, 1, 17, 65, 128, 0, 129, 32, 3]

Pair = tuple[torch.Tensor, torch.Tensor]
Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make(head_size: int, lengths: list[int] = LENGTHS) -> tuple[Qkv, torch.Tensor]:
    """q [1, tokens, 2, head_size], k and v with one head; cu_seqlens."""
    generator = torch.manual_seed(head_size)
    buffer = torch.randn(1, sum(lengths), 4, head_size, generator=generator).bfloat16()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    q, k, v = buffer.split([2, 1, 1], dim=2)
    return (q, k, v), cu_seqlens


def exactly(qkv: Qkv, scale: float | None, cu_seqlens: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.double() for x in qkv)
    return attention_reference(q, k, v, scale, cu_seqlens)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


# The emulated library has no other path: what it calls of theirs is not called.
OTHERS = "\n".join(
    f"namespace vllm_mmc::{name} {{"
    " void work(const Attention&, int64_t, int64_t) {} }"
    for name in ("avx512_bf16", "avx512", "avx2", "portable", *PLAIN)
)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> cpu_kernel._Library:
    """The AMX path with its instructions in C++; the AVX-512 around them is real."""
    if "avx512_bf16" not in cpu_kernel.levels():
        pytest.skip("csrc/cpu/tiles_amx.cpp needs AVX512_BF16 beside AMX")
    folder = tmp_path_factory.mktemp("emulated")
    others = folder / "others.cpp"
    others.write_text(f'#include "varlen_attention.h"\n{OTHERS}\n')
    header = Path(__file__).with_name("emulated_amx.h")
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-psabi", f"-I{SOURCES}", f'-DEMULATED_AMX="{header}"']
    files = [SOURCES / "tiles_amx.cpp", SOURCES / "varlen_attention.cpp", others]
    found = folder / "kernel.so"
    subprocess.run([CXX, *flags, *files, "-o", found], check=True)
    return cpu_kernel._Library(str(found))


@pytest.fixture(params=TILES)
def both(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Pair]:
    """Calls a path and its plain one. Where there is no AMX, it is emulated."""
    level, library = request.param, cpu_kernel._library()
    if level not in cpu_kernel.levels():
        if level != "amx":
            pytest.skip(f"this processor does not have {level}")
        library = request.getfixturevalue("emulated")

    def call(*args: Any) -> Pair:
        attend: Callable[..., torch.Tensor] = cpu_kernel.varlen_attention
        plain = attend(*args, level=f"plain_{level}")
        with monkeypatch.context() as patch:
            patch.setattr(cpu_kernel, "_library", lambda: library)
            return attend(*args, level=level), plain

    return call


@pytest.mark.parametrize("head_size", [7, 64, 72, 80, 88, 128])
def test_to_the_bit(both: Callable[..., Pair], head_size: int) -> None:
    qkv, cu_seqlens = make(head_size)
    assert same_bits(*both(*qkv, 0.1, cu_seqlens))


def test_prefixes_to_the_bit(both: Callable[..., Pair]) -> None:
    qkv, cu_seqlens = make(80)
    ends = torch.cat([torch.arange(n) // 50 * 50 + 50 for n in LENGTHS])
    assert same_bits(*both(*qkv, 0.1, cu_seqlens, ends))


@pytest.mark.parametrize(
    ("magnitude", "scale"), [(1e-25, 3.0), (1e-3, 0.0), (6.0, -0.3)]
)
def test_to_the_bit_where_scores_rise_and_vanish(
    both: Callable[..., Pair], magnitude: float, scale: float
) -> None:
    """Later keys weigh more, so sums are scaled; products below 2^-126 are 0."""
    (q, k, v), cu_seqlens = make(72)
    k = k * torch.linspace(0, magnitude, k.shape[1])[:, None, None]
    qkv = q * magnitude, k.bfloat16(), v * magnitude
    found, plain = both(*qkv, scale, cu_seqlens)
    assert same_bits(found, plain)
    exact = exactly(qkv, scale, cu_seqlens)
    # A weight is rounded to 8 bits, and so is the output: 2^-8, and once more for room.
    limit = 2**-7 * qkv[2].abs().max().item()
    assert (found.double() - exact).abs().max().item() <= limit


@pytest.mark.parametrize("level", HERE)
def test_error_is_not_above_pytorchs(level: str) -> None:
    """Both round weights to bf16; neither rounds scores or sums."""
    for head_size, lengths in ((64, [300, 17]), (80, [64] * 4)):
        qkv, cu_seqlens = make(head_size, lengths)
        exact = exactly(qkv, None, cu_seqlens)
        scale = head_size**-0.5
        found = cpu_kernel.varlen_attention(*qkv, scale, cu_seqlens, level=level)
        torchs = torch_sdpa_wrapper(*qkv, scale, cu_seqlens, enable_gqa=True)
        error, allowed = ((x - exact).norm().item() for x in (found, torchs))
        # Which weights are rounded up differs: two draws from one distribution.
        assert error <= 1.01 * allowed


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("size", [torch.inf, -torch.inf, torch.nan])
def test_lost_numbers(level: str, size: float) -> None:
    (q, k, v), cu_seqlens = make(72, [70, 30])
    q, k, v = q.clone(), k.clone(), v.clone()
    q[0, 3, 0], v[0, 80, 0, 5] = size, size
    expected = attention_reference(q, k, v, 0.1, cu_seqlens)
    found = cpu_kernel.varlen_attention(q, k, v, 0.1, cu_seqlens, level=level)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())


@pytest.mark.parametrize("level", HERE)
def test_an_item_is_alone(level: str) -> None:
    (q, k, v), cu_seqlens = make(80)
    together = cpu_kernel.varlen_attention(q, k, v, 0.1, cu_seqlens, level=level)
    for item in (slice(18, 83), slice(340, 372)):
        q2, k2, v2 = (torch.full_like(x, torch.nan) for x in (q, k, v))
        q2[:, item], k2[:, item], v2[:, item] = q[:, item], k[:, item], v[:, item]
        found = cpu_kernel.varlen_attention(q2, k2, v2, 0.1, cu_seqlens, level=level)
        assert same_bits(found[:, item], together[:, item])


@pytest.mark.parametrize("level", cpu_kernel.levels())
def test_items_of_some_lengths(level: str) -> None:
    """Others keep what is there; those that are computed are as among all."""
    qkv, cu_seqlens = make(64)
    whole = cpu_kernel.varlen_attention(*qkv, 0.1, cu_seqlens, level=level)
    out = torch.full_like(whole, 7)
    back = cpu_kernel.varlen_attention(
        *qkv, 0.1, cu_seqlens, level=level, lengths=(17, 128), out=out
    )
    assert back is out
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        item = out[:, start:end]
        expected = whole[:, start:end] if 17 <= end - start <= 128 else 7
        assert (item == expected).all()
