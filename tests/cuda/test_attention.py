# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The attention of a GPU without one: vLLM's Triton kernel in Triton's interpreter and
through its compiler, and FlashAttention by fakes with its signatures.

The interpreter has to be chosen before Triton is imported: this file runs itself.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from vllm.platforms import current_platform

from mmc_testing.as_on_cuda import package_varlen, vllm_varlen
from vllm_mmc.attention import vit_attn_wrappers
from vllm_mmc.attention.reference import attention_reference

LENGTHS = [5, 0, 33, 1]
Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
PAD = 7  # tokens of no item, as the buffers of a CUDA graph have


def make(dtype: torch.dtype, kv_heads: int = 2) -> tuple[Qkv, torch.Tensor]:
    """Views of one buffer, [1, tokens, heads, 16], and cu_seqlens."""
    heads = [4, kv_heads, kv_heads]
    tokens = sum(LENGTHS) + PAD
    buffer = torch.randn(1, tokens, sum(heads), 16, generator=torch.manual_seed(0))
    q, k, v = buffer.to(dtype).split(heads, dim=2)
    return (q, k, v), torch.tensor([0, *LENGTHS]).cumsum(0).int()


def make_rows() -> Qkv:
    """Two items of 20 tokens, [2, 20, heads, 16]."""
    (q, k, v), _ = make(torch.float32)
    return tuple(x[:, :40].reshape(2, 20, *x.shape[2:]) for x in (q, k, v))


@contextmanager
def capture(captures: bool = True) -> Iterator[None]:
    """A CUDA platform that captures or not; memory that nobody wrote holds NaN."""
    platform, empty_like = type(current_platform), torch.empty_like

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        return empty_like(*args, **kwargs).fill_(float("nan"))

    with (
        mock.patch.object(platform, "is_cuda_alike", lambda _: True),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", lambda: captures),
        mock.patch.object(torch, "empty_like", poisoned),
    ):
        yield


def check(found: torch.Tensor, qkv: Qkv, cu_seqlens: torch.Tensor) -> None:
    expected = attention_reference(*qkv, 0.3, cu_seqlens)
    tokens = int(cu_seqlens[-1])
    # The kernel rounds the weights of the softmax to the dtype.
    eps = torch.finfo(found.dtype).eps
    difference = (found - expected)[:, :tokens].abs().max().item()
    assert difference <= 8 * eps, difference


# ---------------------------------------------------------------- Triton


def test_triton_kernel_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "3 checked" in done.stdout


def triton_kernel() -> Any:
    """vLLM's module, with Triton: on a CPU vLLM puts a placeholder in its place."""
    import importlib

    import triton
    import triton.language as tl
    import vllm.triton_utils

    name = "vllm.v1.attention.ops.triton_prefill_attention"
    with (
        mock.patch.multiple(vllm.triton_utils, triton=triton, tl=tl),
        mock.patch.dict(sys.modules),
    ):
        sys.modules.pop(name, None)
        return importlib.import_module(name)


def interpret() -> None:
    """In the child. bfloat16 is wrong in the interpreter itself."""
    module = triton_kernel()
    sys.modules[module.__name__] = module
    wrapper = vit_attn_wrappers.triton_attn_wrapper
    for dtype in (torch.float32, torch.float16):
        qkv, cu_seqlens = make(dtype)
        longest = torch.tensor(max(LENGTHS))
        with capture(False):
            found = wrapper(*qkv, 1, 0.3, cu_seqlens, longest)
        check(found, qkv, cu_seqlens)
        # The buffers of a graph: empty items at the end, a larger bound.
        padded = torch.cat([cu_seqlens, cu_seqlens[-1:].repeat(3)])
        with capture():
            replayed = wrapper(*qkv, 1, 0.3, padded, torch.tensor(100))
        tokens = sum(LENGTHS)
        assert torch.equal(found[:, :tokens], replayed[:, :tokens])
        assert not replayed[:, tokens:].any(), "tokens of no item"
    rows = make_rows()
    found = wrapper(*rows, 2, 0.3)
    check(found, rows, torch.tensor([0, 20, 40]))
    print("3 checked")


@pytest.mark.forked
@pytest.mark.parametrize(("capability", "products"), [(80, "mma.sync"), (90, "wgmma")])
def test_triton_kernel_compiles(capability: int, products: str) -> None:
    """To machine code, with the sizes that vLLM's launcher chooses for heads of 64."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = triton_kernel()._fwd_kernel
    constants = {
        "kv_group_num": 1,
        "BLOCK_M": 128,
        "BLOCK_N": 128,
        "BLOCK_DMODEL": 64,
        "Lk": 64,
        "IS_CAUSAL": False,
        "SLIDING_WINDOW_Q": 0,
        "SLIDING_WINDOW_K": 0,
        "USE_SINKS": False,
        "SINKS_BIAS_KEY0": False,
    }
    kinds = dict.fromkeys(("Q", "K", "V", "Out", "Sinks"), "*bf16")
    kinds |= dict.fromkeys(("B_Start_Loc", "B_Seqlen"), "*i32") | {"sm_scale": "fp32"}
    names = kernel.arg_names
    known = {name: value for name, value in constants.items() if name in names}
    signature = {n: "constexpr" if n in known else kinds.get(n, "i32") for n in names}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=known),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": 1},
    )
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    assert products in compiled.asm["ptx"]
    # What a block may have on this GPU, and no registers beside them.
    assert compiled.metadata.shared == 32 << 10


# ---------------------------------------------------------------- FlashAttention


@pytest.fixture(params=["vllm", "package"])
def flash_attn(request: pytest.FixtureRequest) -> Iterator[str]:
    from vllm.v1.attention.backends import fa_utils

    if request.param == "vllm":
        name, target, varlen = "flash_attn_varlen_func", fa_utils, vllm_varlen
        with mock.patch.object(target, name, varlen, create=True):
            yield request.param
        return
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = package_varlen  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, flash_attn=package):
        yield request.param


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("fa_version", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_attn(
    dtype: torch.dtype,
    kv_heads: int,
    fa_version: int | None,
    captures: bool,
    flash_attn: str,
) -> None:
    qkv, cu_seqlens = make(dtype, kv_heads)
    longest = torch.tensor(max(LENGTHS))
    with capture(captures):
        found = vit_attn_wrappers.flash_attn_maxseqlen_wrapper(
            *qkv, 1, False, fa_version, 0.3, cu_seqlens, longest
        )
    check(found, qkv, cu_seqlens)
    assert found.is_contiguous() and found.shape == qkv[0].shape
    nobodys = found[:, sum(LENGTHS) :]
    assert not nobodys.any() if captures else nobodys.isnan().all()


def test_flash_attn_of_rows(flash_attn: str) -> None:
    rows = make_rows()
    found = vit_attn_wrappers.flash_attn_maxseqlen_wrapper(*rows, 2, False, None, 0.3)
    check(found, rows, torch.tensor([0, 20, 40]))


def test_a_bound_that_is_too_small_shows(flash_attn: str) -> None:
    """The fakes launch what they are told."""
    qkv, cu_seqlens = make(torch.float32)
    found = vit_attn_wrappers.flash_attn_maxseqlen_wrapper(
        *qkv, 1, False, None, 0.3, cu_seqlens, torch.tensor(max(LENGTHS) - 1)
    )
    assert found[:, : sum(LENGTHS)].isnan().any()


if __name__ == "__main__":
    interpret()
