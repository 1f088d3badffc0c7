# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The layer in the place of vLLM's: same answers, same host side, same choice."""

import ctypes
import inspect
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn as nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import mm_encoder_attention as stock
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from mmc_testing.logs import warnings_of
from vllm_mmc.attention import cpu_kernel, mm_encoder_attention
from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.encoder.install import EncoderPlan, install

HEADS, KV_HEADS, SIZE = 4, 2, 72
LENGTHS = [30, 0, 64, 1, 5]


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig()
    with set_current_vllm_config(config):
        yield config


def inputs(
    dtype: torch.dtype = torch.float32,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Views of one buffer [1, tokens, all heads * size]."""
    sizes = [HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE]
    qkv = torch.randn(1, sum(LENGTHS), sum(sizes), dtype=dtype).split(sizes, dim=-1)
    return list(qkv), torch.tensor([0, *LENGTHS]).cumsum(0).int()


def make(cls: type[stock.MMEncoderAttention]) -> stock.MMEncoderAttention:
    return cls(HEADS, SIZE, num_kv_heads=KV_HEADS, prefix="visual.attn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_seqlen", [64, torch.tensor(64), None])
@pytest.mark.parametrize("in_4d", [False, True])
def test_answers_are_those_of_vllm(
    in_4d: bool, max_seqlen: int | torch.Tensor | None, dtype: torch.dtype
) -> None:
    qkv, cu_seqlens = inputs(dtype)
    if in_4d:
        qkv = [x.unflatten(-1, (-1, SIZE)) for x in qkv]
    expected = make(stock.MMEncoderAttention)(*qkv, cu_seqlens, max_seqlen)
    found = make(MMEncoderAttention)(*qkv, cu_seqlens, max_seqlen)
    assert found.shape == expected.shape and found.is_contiguous()
    # Both round the outcome once; vLLM's rounds the weights as well.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * eps * 4)
    torch.testing.assert_close(
        make(MMEncoderAttention)(*qkv),
        make(stock.MMEncoderAttention)(*qkv),
        rtol=0,
        atol=8 * eps * 4,
    )


def test_signatures_are_those_of_vllm() -> None:
    for name in ("__init__", "forward_cpu", "forward_cuda", "forward_native"):
        ours = inspect.signature(getattr(MMEncoderAttention, name))
        theirs = inspect.signature(getattr(stock.MMEncoderAttention, name))
        assert list(ours.parameters) == list(theirs.parameters)
        assert [p.default for p in ours.parameters.values()] == [
            p.default for p in theirs.parameters.values()
        ]


@pytest.mark.parametrize("backend", list(AttentionBackendEnum))
def test_the_host_side_is_that_of_vllm(backend: AttentionBackendEnum) -> None:
    cu_seqlens = np.array([0, 3, 9, 40], dtype=np.int32)
    cpu = torch.device("cpu")
    for cls in (stock.MMEncoderAttention, MMEncoderAttention):
        found = (
            cls.compute_max_seqlen(backend, cu_seqlens),
            cls.maybe_compute_seq_lens(backend, cu_seqlens, cpu),
            cls.maybe_recompute_cu_seqlens(backend, cu_seqlens, 64, 1, cpu),
        )
        if cls is not MMEncoderAttention:
            expected = found
    torch.testing.assert_close(found, expected)


def test_in_the_place_of_vllms(vllm_config: VllmConfig) -> None:
    """Those of one model; no other, no subclass, nothing else of them."""

    class Mine(stock.MMEncoderAttention):
        pass

    model = nn.ModuleDict({"a": make(stock.MMEncoderAttention), "b": make(Mine)})
    other = make(stock.MMEncoderAttention)
    before = dict(vars(model["a"]))
    install(model, EncoderPlan(), vllm_config)
    assert [type(x) for x in model.values()] == [MMEncoderAttention, Mine]
    assert (
        type(other) is type(make(stock.MMEncoderAttention)) is stock.MMEncoderAttention
    )
    after = dict(vars(model["a"]))
    assert after.pop("cpu_op") == "varlen_attention"
    assert after.pop("cpu_provider") == "auto"
    assert after.pop("_forward_method").__func__ is MMEncoderAttention.forward_cpu
    before.pop("_forward_method")
    assert after == before
    qkv, cu_seqlens = inputs()
    torch.testing.assert_close(model["a"](*qkv, cu_seqlens), other(*qkv, cu_seqlens))


def test_a_backend_asked_for_by_name(vllm_config: VllmConfig) -> None:
    asked = mock.Mock(mm_encoder_attn_backend=AttentionBackendEnum.TORCH_SDPA)
    with mock.patch.object(
        mm_encoder_attention, "get_multimodal_config", return_value=asked
    ):
        layer = make(MMEncoderAttention)
    assert layer.cpu_op == "batched_sdpa"
    qkv, cu_seqlens = inputs()
    expected = make(MMEncoderAttention)(*qkv, cu_seqlens)
    torch.testing.assert_close(layer(*qkv, cu_seqlens), expected)


def test_a_library_of_another_version_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkout that was updated and not built again has one."""

    class Longer(cpu_kernel._Attention):
        _fields_ = (("added", ctypes.c_int64),)

    assert cpu_kernel._library.__wrapped__()
    monkeypatch.setattr(cpu_kernel, "_Attention", Longer)
    assert cpu_kernel._library.__wrapped__() is None


def test_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernel, "_library", lambda: None)
    with warnings_of(mm_encoder_attention) as logged:
        layers = [make(MMEncoderAttention) for _ in range(2)]
    assert len(logged) == 1 and "without its CPU kernel" in logged[0]
    assert "C++ compiler" in logged[0]
    qkv, cu_seqlens = inputs()
    expected = make(stock.MMEncoderAttention)(*qkv, cu_seqlens)
    torch.testing.assert_close(layers[0](*qkv, cu_seqlens), expected)
    with pytest.raises(RuntimeError, match="without its CPU kernel"):
        q, k, v = (x.unflatten(-1, (-1, SIZE)) for x in qkv)
        torch.ops.vllm_mmc.varlen_attention(q, k, v)


@pytest.mark.parametrize("backend", ["FLASH_ATTN", "TRITON_ATTN"])
def test_a_gpu_takes_our_ops(backend: str) -> None:
    """What `forward_cuda` calls, without a GPU: the ops are replaced."""
    layer = make(MMEncoderAttention)
    layer.attn_backend = AttentionBackendEnum[backend]
    layer.is_flash_attn_backend = backend == "FLASH_ATTN"
    layer._fa_version = 3
    qkv, cu_seqlens = inputs()
    name = {
        "FLASH_ATTN": "flash_attn_maxseqlen_wrapper",
        "TRITON_ATTN": "triton_attn_wrapper",
    }[backend]
    op = mock.Mock(side_effect=lambda q, *_: q.contiguous())
    with mock.patch.object(torch.ops.vllm_mmc, name, op):
        found = layer.forward_cuda(*qkv, cu_seqlens, 64)
    assert torch.equal(found, qkv[0])
    *args, bounds, max_seqlen = op.call_args.args
    assert bounds is cu_seqlens and int(max_seqlen) == 64 and max_seqlen.is_cpu
    q, k, v, batch, *_, scale = args
    assert (q.shape, k.shape, batch) == ((1, 100, 4, 72), (1, 100, 2, 72), 1)
    assert v.shape == k.shape and scale == layer.scale
    if backend == "FLASH_ATTN":
        assert args[4:6] == [False, 3]
