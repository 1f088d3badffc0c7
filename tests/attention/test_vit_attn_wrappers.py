# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Every op of encoder attention computes the reference, on every path it has."""

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.attention.ops.vit_attn_wrappers import torch_sdpa_wrapper

from mmc_testing.as_on_cuda import package_varlen
from vllm_mmc.attention import cpu_kernel, vit_attn_wrappers
from vllm_mmc.attention.cpu_kernel import State
from vllm_mmc.attention.reference import attention_reference

OPS = torch.ops.vllm_mmc
CPU_OPS = ["varlen_attention", "batched_sdpa"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [0, 1, 5, 64, 65, 130, 17, 0, 300, 64, 3]

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make(
    lengths: list[int],
    heads: int = 4,
    kv_heads: int | None = None,
    head_size: int = 80,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensors, torch.Tensor]:
    """Views of one qkv buffer, [1, tokens, heads, head_size], and cu_seqlens."""
    kv_heads = heads if kv_heads is None else kv_heads
    generator = torch.manual_seed(len(lengths) + sum(lengths))
    buffer = torch.randn(
        (1, sum(lengths), heads + 2 * kv_heads, head_size), generator=generator
    )
    q, k, v = buffer.to(dtype).split([heads, kv_heads, kv_heads], dim=2)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return (q, k, v), cu_seqlens


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # An error of eps * |score| in an exponent is a relative error of the weight; with
    # these inputs scores stay below 8. PyTorch rounds the weights to the dtype as well.
    limit = 16 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
    difference = (found.double() - expected.double()).abs().max().item()
    assert difference <= limit, f"{difference} > {limit}"
    assert found.dtype == expected.dtype and found.is_contiguous()


@pytest.fixture(params=CPU_OPS)
def op(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    found: Callable[..., torch.Tensor] = getattr(OPS, request.param)
    return found


def test_the_kernel_was_built() -> None:
    """All of it: a test that runs `levels()` must not run none."""
    has = set(Path("/proc/cpuinfo").read_text().split())
    flags = {"amx": "amx_bf16", "avx512_bf16": "avx512_bf16", "avx512": "avx512bw"}
    flags |= {"avx2": "avx2"}
    paths = [name for name, flag in flags.items() if flag in has]
    plain = ["portable", "plain_amx", "plain_avx512_bf16"]
    assert cpu_kernel.levels() == (*paths, *plain)
    compiled = [name for name, s in cpu_kernel.states() if s != State.NOT_COMPILED]
    if has & {"x86_64", "lm"}:
        assert compiled == [*flags, *plain]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [32, 64, 72, 80, 88, 128])
def test_reference(
    op: Callable[..., torch.Tensor], head_size: int, dtype: torch.dtype
) -> None:
    qkv, cu_seqlens = make(LENGTHS, head_size=head_size, dtype=dtype)
    expected = attention_reference(*qkv, 0.1, cu_seqlens)
    close(op(*qkv, 0.1, cu_seqlens), expected)
    close(torch_sdpa_wrapper(*qkv, 0.1, cu_seqlens), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_size", [7, 72, 80])
@pytest.mark.parametrize("level", cpu_kernel.levels())
def test_each_instruction_set(level: str, head_size: int, dtype: torch.dtype) -> None:
    qkv, cu_seqlens = make(LENGTHS, head_size=head_size, dtype=dtype)
    found = cpu_kernel.varlen_attention(*qkv, 0.1, cu_seqlens, level=level)
    close(found, attention_reference(*qkv, 0.1, cu_seqlens))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_grouped_queries(op: Callable[..., torch.Tensor], kv_heads: int) -> None:
    qkv, cu_seqlens = make(LENGTHS, heads=6, kv_heads=kv_heads)
    close(op(*qkv, None, cu_seqlens), attention_reference(*qkv, None, cu_seqlens))


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("seq", [0, 1, 66])
def test_without_cu_seqlens(
    op: Callable[..., torch.Tensor], batch: int, seq: int
) -> None:
    q, k, v = torch.randn(3, batch, seq, 2, 64)
    found = op(q, k, v)
    assert found.shape == q.shape
    if q.numel():
        close(found, attention_reference(q, k, v))
        # [seq, batch] layout: the two dimensions cannot be laid end to end in place.
        turned = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
        close(op(*turned), attention_reference(q, k, v))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_item_is_alone(dtype: torch.dtype) -> None:
    """Bit for bit the same by itself, among others, and among NaN."""
    (q, k, v), cu_seqlens = make(LENGTHS, dtype=dtype)
    together = OPS.varlen_attention(q, k, v, None, cu_seqlens)
    for start, end in zip(
        cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True
    ):
        item = slice(start, end)
        alone = OPS.varlen_attention(q[:, item], k[:, item], v[:, item])
        assert torch.equal(together[:, item], alone)
        lost = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        for x, y in zip(lost, (q, k, v), strict=True):
            x[:, item] = y[:, item]
        beside = OPS.varlen_attention(*lost, None, cu_seqlens)
        assert torch.equal(beside[:, item], alone)
        assert beside.isnan().sum() == q.numel() - alone.numel()


def test_an_item_is_alone_with_sdpa() -> None:
    (q, k, v), cu_seqlens = make(LENGTHS)
    before = OPS.batched_sdpa(q, k, v, None, cu_seqlens)
    item = slice(cu_seqlens[5], cu_seqlens[6])
    k[:, item], v[:, item] = torch.nan, torch.nan
    after = OPS.batched_sdpa(q, k, v, None, cu_seqlens)
    assert after[:, item].isnan().all()
    for rest in (slice(0, item.start), slice(item.stop, None)):
        close(after[:, rest], before[:, rest])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("level", cpu_kernel.levels())
def test_threads_change_nothing(level: str, threads: Callable[[int], None]) -> None:
    qkv, cu_seqlens = make([700, 3, 90, 0, 1, 250], heads=3, dtype=torch.bfloat16)
    found = []
    for count in (1, 2, 4):
        threads(count)
        found.append(cpu_kernel.varlen_attention(*qkv, 0.1, cu_seqlens, level=level))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_tokens_of_no_item(op: Callable[..., torch.Tensor]) -> None:
    qkv, _ = make([100])
    for bounds in ([], [10, 30, 60]), ([0], [100]):
        cu_seqlens = torch.tensor([*bounds[0], *bounds[1]], dtype=torch.int32)
        expected = attention_reference(*qkv, None, cu_seqlens)
        close(op(*qkv, None, cu_seqlens), expected)
    nothing = torch.tensor([0], dtype=torch.int32)
    assert op(*qkv, None, nothing).count_nonzero() == 0


@pytest.mark.parametrize("size", [1e4, torch.inf, torch.nan])
def test_large_and_lost_numbers(size: float) -> None:
    """Where PyTorch answers, the same; where it is lost, we say NaN as well."""
    (q, k, v), _ = make([70])
    q, k = q.clone(), k.clone()
    q[0, 3], k[0, 5] = size, size
    expected = attention_reference(q, k, v)
    found, torchs = OPS.varlen_attention(q, k, v), torch_sdpa_wrapper(q, k, v)
    assert torch.equal(found.isnan(), expected.isnan())

    def error(x: torch.Tensor) -> float:
        return (x - expected).nan_to_num().abs().max().item()

    # With scores of 1e4 and more the exponent has few digits left, for both. PyTorch
    # adds up the products of a score in parts; one by one they lose up to twice that.
    assert error(found) <= 4 * error(torchs)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=12),
    st.sampled_from([(1, 1), (4, 2), (5, 5)]),
    st.sampled_from([32, 56, 72, 96]),
    st.sampled_from(DTYPES),
)
def test_any_lengths(
    lengths: list[int], heads: tuple[int, int], head_size: int, dtype: torch.dtype
) -> None:
    if not sum(lengths):
        return
    qkv, cu_seqlens = make(lengths, *heads, head_size, dtype)
    expected = attention_reference(*qkv, None, cu_seqlens)
    for name in CPU_OPS:
        close(getattr(OPS, name)(*qkv, None, cu_seqlens), expected)


@pytest.mark.parametrize("with_cu_seqlens", [True, False])
def test_opcheck(op: Callable[..., torch.Tensor], with_cu_seqlens: bool) -> None:
    qkv, cu_seqlens = make([3, 0, 20], head_size=32)
    args = (*qkv, 0.2, cu_seqlens if with_cu_seqlens else None)
    torch.library.opcheck(getattr(op, "default", op), args)


def test_full_graph(op: Callable[..., torch.Tensor]) -> None:
    def block(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        q, k, v = x.chunk(3, dim=2)
        return op(q * 2, k, v, None, cu_seqlens) + 1

    torch._dynamo.reset()  # the two ops are two values of one name
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([5, 7], [64, 3, 9], [31, 40]):
            (q, _, _), cu_seqlens = make(lengths, heads=6)
            close(compiled(q, cu_seqlens), block(q, cu_seqlens))


BAD: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "descending": (lambda: {"cu_seqlens": [0, 9, 5, 20]}, "ascend within .0, 20."),
    "too far": (lambda: {"cu_seqlens": [0, 21]}, "ascend within .0, 20."),
    "negative": (lambda: {"cu_seqlens": [-1, 20]}, "ascend within .0, 20."),
    "no bounds": (lambda: {"cu_seqlens": []}, "cu_seqlens must be .items . 1."),
    "heads": (
        lambda: {"k": (1, 20, 3, 64), "v": (1, 20, 3, 64)},
        r"k \(3\) must divide",
    ),
    "keys": (lambda: {"k": (1, 19, 4, 64)}, "differ in heads only"),
    "dtype": (lambda: {"dtype": torch.float64}, "fp32, bf16 or fp16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(op: Callable[..., torch.Tensor], name: str) -> None:
    make_bad, message = BAD[name]
    bad = make_bad()
    dtype = bad.get("dtype", torch.float32)
    q, k, v = (torch.randn(bad.get(x, (1, 20, 4, 64)), dtype=dtype) for x in "qkv")
    cu_seqlens = torch.tensor(bad.get("cu_seqlens", [0, 20]), dtype=torch.int32)
    if dtype is torch.float64 and op is OPS.batched_sdpa:
        close(op(q, k, v, None, cu_seqlens), attention_reference(q, k, v))
        return
    with pytest.raises(ValueError, match=message):
        op(q, k, v, None, cu_seqlens)


# --------------------------------------------------------- causal by chunks


def with_kernel(
    qkv: Tensors, cu_seqlens: torch.Tensor | None, kv_lens: torch.Tensor | None
) -> torch.Tensor:
    found: torch.Tensor = OPS.varlen_attention(*qkv, 0.1, cu_seqlens, kv_lens)
    return found


def with_sdpa(
    qkv: Tensors, cu_seqlens: torch.Tensor | None, kv_lens: torch.Tensor | None
) -> torch.Tensor:
    longest = None if cu_seqlens is None else cu_seqlens.diff().max()
    found: torch.Tensor = OPS.prefix_sdpa(*qkv, 0.1, cu_seqlens, longest, kv_lens)
    return found


@pytest.fixture(params=[with_kernel, with_sdpa])
def prefix_op(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    found: Callable[..., torch.Tensor] = request.param
    return found


def chunk_ends(lengths: list[int], chunk: int) -> torch.Tensor:
    """Of each token, as encoders give them: the last of an item may be too far."""
    return torch.cat([(torch.arange(n) // chunk + 1) * chunk for n in lengths])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 50, None])
def test_prefixes(
    prefix_op: Callable[..., torch.Tensor], chunk: int | None, dtype: torch.dtype
) -> None:
    qkv, cu_seqlens = make(LENGTHS, heads=4, kv_heads=2, head_size=64, dtype=dtype)
    kv_lens = None if chunk is None else chunk_ends(LENGTHS, chunk)
    found = prefix_op(qkv, cu_seqlens, kv_lens)
    close(found, attention_reference(*qkv, 0.1, cu_seqlens, kv_lens))
    if chunk is None:
        close(found, OPS.batched_sdpa(*qkv, 0.1, cu_seqlens))
    # Without bounds each row of a batch is an item.
    q, k, v = rows = tuple(x[:, :128].unflatten(1, (2, 64))[0] for x in qkv)
    seen = None if kv_lens is None else chunk_ends([64, 64], chunk or 0)
    found = prefix_op(rows, None, seen)
    close(found, attention_reference(q, k, v, 0.1, None, seen))


@pytest.mark.parametrize("level", cpu_kernel.levels())
def test_prefixes_with_each_instruction_set(level: str) -> None:
    qkv, cu_seqlens = make(LENGTHS)
    kv_lens = chunk_ends(LENGTHS, 50)
    found = cpu_kernel.varlen_attention(*qkv, 0.1, cu_seqlens, kv_lens, level)
    close(found, attention_reference(*qkv, 0.1, cu_seqlens, kv_lens))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=8), st.integers(1, 100))
def test_prefixes_of_any_lengths(lengths: list[int], chunk: int) -> None:
    qkv, cu_seqlens = make(lengths, head_size=32)
    if not sum(lengths):
        return
    kv_lens = chunk_ends(lengths, chunk)
    expected = attention_reference(*qkv, 0.1, cu_seqlens, kv_lens)
    for prefix_op in (with_kernel, with_sdpa):
        close(prefix_op(qkv, cu_seqlens, kv_lens), expected)


def test_what_comes_later_is_not_heard(prefix_op: Callable[..., torch.Tensor]) -> None:
    lengths = [120, 70]
    (q, k, v), cu_seqlens = make(lengths)
    kv_lens = chunk_ends(lengths, 50)
    before = prefix_op((q, k, v), cu_seqlens, kv_lens)
    k, v = k.clone(), v.clone()
    k[:, 50:120], v[:, 50:120] = 9, 9  # the first item's second and third chunk
    after = prefix_op((q, k, v), cu_seqlens, kv_lens)
    assert torch.equal(after[:, :50], before[:, :50])
    assert torch.equal(after[:, 120:], before[:, 120:])
    assert not torch.isclose(after[:, 50:120], before[:, 50:120]).all(-1).any()


def test_prefixes_in_a_graph(prefix_op: Callable[..., torch.Tensor]) -> None:
    def block(
        x: torch.Tensor, ends: torch.Tensor, longest: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = x.chunk(3, dim=2)
        if prefix_op is with_kernel:
            return OPS.varlen_attention(q * 2, k, v, None, ends, seen) + 1
        return OPS.prefix_sdpa(q * 2, k, v, None, ends, longest, seen) + 1

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([5, 7], [64, 3, 9], [31, 40]):
            (q, k, v), ends = make(lengths, heads=6)
            longest, seen = ends.diff().max(), chunk_ends(lengths, 10)
            args = (q, ends, longest, seen)
            close(compiled(*args), block(*args))
    if prefix_op is with_kernel:
        torch.library.opcheck(OPS.varlen_attention.default, (q, k, v, 0.2, ends, seen))
    else:
        torch.library.opcheck(
            OPS.prefix_sdpa.default, (q, k, v, 0.2, ends, longest, seen)
        )


def test_bad_prefixes(prefix_op: Callable[..., torch.Tensor]) -> None:
    qkv, cu_seqlens = make([20])
    with pytest.raises(ValueError, match=r"kv_lens must be .batch . seq., .20.; found"):
        prefix_op(qkv, cu_seqlens, torch.ones(19, dtype=torch.int64))
    nothing = tuple(x[:, :0] for x in qkv)
    no_lengths = torch.ones(0, dtype=torch.int64)
    assert prefix_op(nothing, None, no_lengths).shape == (1, 0, 4, 80)


def test_bad_prefixes_of_the_kernel() -> None:
    """What else would read where nothing is."""
    qkv, cu_seqlens = make([20])
    with pytest.raises(ValueError, match="kv_lens must be 1 or more; found 0"):
        with_kernel(qkv, cu_seqlens, torch.arange(20))
    for bounds in ([0, 19], [1, 20], [0, 25, 20]):
        with pytest.raises(ValueError, match="cu_seqlens must ascend from 0 to 20"):
            with_kernel(qkv, torch.tensor(bounds), torch.ones(20, dtype=torch.int64))


# ------------------------------------------------------- ops of GPUs, without a GPU


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """`flash_attn_varlen_func` of a stand-in for the package."""
    package = ModuleType("flash_attn")
    varlen = mock.create_autospec(package_varlen, side_effect=package_varlen)
    package.flash_attn_varlen_func = varlen  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return varlen


def was_asked(flash_attn: mock.Mock, max_seqlen: int, cu_seqlens: list[int]) -> None:
    flash_attn.assert_called_once()
    _, args, kwargs = flash_attn.mock_calls[0]
    asked = inspect.signature(package_varlen).bind(*args, **kwargs).arguments
    assert asked["cu_seqlens_q"] is asked["cu_seqlens_k"]
    for side in "qk":
        assert asked[f"max_seqlen_{side}"] == max_seqlen
        assert type(asked[f"max_seqlen_{side}"]) is int
        assert asked[f"cu_seqlens_{side}"].tolist() == cu_seqlens


@pytest.mark.parametrize("max_seqlen", [20, torch.tensor(20), None])
def test_flash_attn(
    max_seqlen: int | torch.Tensor | None, flash_attn: mock.Mock
) -> None:
    qkv, cu_seqlens = make([3, 0, 20], head_size=32)
    found = OPS.flash_attn_maxseqlen_wrapper(
        *qkv,
        1,
        False,
        None,
        0.2,
        cu_seqlens,
        vit_attn_wrappers.max_seqlen_tensor(max_seqlen),
    )
    close(found, attention_reference(*qkv, 0.2, cu_seqlens))
    was_asked(flash_attn, 23 if max_seqlen is None else 20, [0, 3, 3, 23])


def test_flash_attn_without_cu_seqlens(flash_attn: mock.Mock) -> None:
    q, k, v = torch.randn(3, 2, 9, 4, 32)
    found = OPS.flash_attn_maxseqlen_wrapper(q, k, v, 2, False, None)
    close(found, attention_reference(q, k, v))
    was_asked(flash_attn, 9, [0, 9, 18])


def test_max_seqlen_is_never_read_from_a_device() -> None:
    qkv, cu_seqlens = make([3, 20], head_size=32)
    on_device = torch.empty((), dtype=torch.int32, device="meta")
    with pytest.raises(ValueError, match="max_seqlen must be an int or .* the host"):
        vit_attn_wrappers.triton_attn_wrapper(*qkv, 1, None, cu_seqlens, on_device)


@pytest.mark.parametrize(
    "name", ["flash_attn_maxseqlen_wrapper", "triton_attn_wrapper"]
)
def test_signatures_are_those_of_vllm(name: str) -> None:
    def schema(namespace: str) -> str:
        return str(getattr(getattr(torch.ops, namespace), name).default._schema)

    assert schema("vllm_mmc").replace("vllm_mmc::", "vllm::") == schema("vllm")


def test_the_fake_of_flash_attn(flash_attn: list[dict[str, Any]]) -> None:
    qkv, cu_seqlens = make([3, 20], head_size=32)
    torch.library.opcheck(
        OPS.flash_attn_maxseqlen_wrapper.default,
        (*qkv, 1, False, None, 0.2, cu_seqlens, torch.tensor(20)),
    )
