# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Who computes attention on which kind of CPU, and that each item is computed once."""

import itertools
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config

from vllm_mmc.attention import cpu_choice, cpu_kernel, vit_attn_wrappers
from vllm_mmc.attention.cpu_kernel import State
from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.attention.reference import attention_reference
from vllm_mmc.encoder.install import EncoderPlan, InstallReport, install
from vllm_mmc.settings import Settings

OPS = torch.ops.vllm_mmc
PATHS = ("amx", "avx512_bf16", "avx512", "avx2", "portable")
NO, REFUSED, OLD = State.NOT_OF_PROCESSOR, State.NOT_OF_SYSTEM, State.NOT_COMPILED
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LENGTHS = (1, 16, 64, 65, 577, 1500, 16384)

# Kind, states that are not "it runs", dtype: provider up to 64 tokens, and beyond.
EXPECTED: dict[str, tuple[dict[str, State], dict[torch.dtype, tuple[str, str]]]] = {
    "amx": (
        {},
        {
            FP32: ("avx512", "avx512"),
            BF16: ("amx", "amx"),
            FP16: ("avx512", "sdpa"),
        },
    ),
    "amx, old compiler": (
        {"amx": OLD},
        {
            FP32: ("avx512", "avx512"),
            BF16: ("avx512", "sdpa"),
            FP16: ("avx512", "sdpa"),
        },
    ),
    "amx, refused by the system": (
        {"amx": REFUSED},
        {
            FP32: ("avx512", "avx512"),
            BF16: ("avx512_bf16", "avx512_bf16"),
            FP16: ("avx512", "avx512"),
        },
    ),
    "avx512_bf16": (
        {"amx": NO},
        {
            FP32: ("avx512", "avx512"),
            BF16: ("avx512_bf16", "avx512_bf16"),
            FP16: ("avx512", "avx512"),
        },
    ),
    "avx512_bf16, old compiler": (
        {"amx": NO, "avx512_bf16": OLD},
        dict.fromkeys((FP32, BF16, FP16), ("avx512", "avx512")),
    ),
    "avx512": (
        dict.fromkeys(PATHS[:2], NO),
        dict.fromkeys((FP32, BF16, FP16), ("avx512", "avx512")),
    ),
    "avx2": (
        dict.fromkeys(PATHS[:3], NO),
        dict.fromkeys((FP32, BF16, FP16), ("avx2", "avx2")),
    ),
    "portable": (
        dict.fromkeys(PATHS[:4], NO),
        dict.fromkeys((FP32, BF16, FP16), ("sdpa", "sdpa")),
    ),
}


def on_a(monkeypatch: pytest.MonkeyPatch, missing: dict[str, State]) -> None:
    states = tuple((name, missing.get(name, State.RUNS)) for name in PATHS)
    plain = (("plain_amx", State.RUNS), ("plain_avx512_bf16", State.RUNS))
    monkeypatch.setattr(cpu_kernel, "states", lambda: states + plain)


@pytest.mark.parametrize("cpu", EXPECTED)
def test_each_kind_of_cpu(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over dtypes and lengths; nothing else is asked."""
    missing, by_dtype = EXPECTED[cpu]
    on_a(monkeypatch, missing)
    kind, _, why = cpu.partition(", ")
    assert cpu_choice.kind() == ("avx512_bf16" if "refused" in why else kind)
    for dtype, (short, long) in by_dtype.items():
        parts = cpu_choice.parts(dtype)
        assert parts[0].shortest == 0 and parts[-1].longest == 2**62
        assert all(a.longest + 1 == b.shortest for a, b in itertools.pairwise(parts))
        for length in LENGTHS:
            (found,) = (p for p in parts if p.shortest <= length <= p.longest)
            assert found.provider == (short if length <= 64 else long), length


def test_the_setting_has_all_names() -> None:
    (field,) = (f for f in fields(Settings) if f.name == "cpu_attention")
    for provider in (cpu_choice.AUTO, *cpu_choice.PROVIDERS):
        assert field.metadata["parse"](provider) == provider


@pytest.mark.parametrize("provider", cpu_choice.PROVIDERS)
def test_one_by_name(provider: str) -> None:
    assert cpu_choice.parts(BF16, provider) == ((0, 2**62, provider),)


def test_what_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a(monkeypatch, {"amx": OLD})
    told = cpu_choice.describe()
    assert told.startswith(
        "CPU of kind amx; float32: avx512, bfloat16: avx512 up to 64"
    )
    assert (
        "up to 64 tokens, sdpa, " in told
        and "amx is left out: it was not compiled" in told
    )
    on_a(monkeypatch, {"amx": REFUSED})
    assert "amx is left out: the system refuses" in cpu_choice.describe()
    on_a(monkeypatch, {"amx": NO})
    assert "left out" not in cpu_choice.describe()
    assert cpu_choice.describe("sdpa").endswith(
        "float32: sdpa, bfloat16: sdpa, float16: sdpa"
    )


def test_each_item_has_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its neighbours; every item is computed once, tokens of none are 0."""
    name = "avx2" if "avx2" in cpu_kernel.levels() else "portable"
    steps = {BF16: ((64, name), (2**62, "sdpa"))}
    monkeypatch.setitem(cpu_choice.CHOICES, cpu_choice.kind(), steps)
    cpu_choice._parts.cache_clear()
    calls: list[tuple[str, Any]] = []
    kernel, sdpa = cpu_kernel.varlen_attention, vit_attn_wrappers._sdpa

    def spied_kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append((name, None))
        return kernel(*args, **kwargs)

    def spied_sdpa(q: torch.Tensor, *args: Any) -> torch.Tensor:
        calls.append(("sdpa", tuple(q.shape[:2])))
        return sdpa(q, *args)

    monkeypatch.setattr(cpu_kernel, "varlen_attention", spied_kernel)
    monkeypatch.setattr(vit_attn_wrappers, "_sdpa", spied_sdpa)
    lengths = [3, 70, 0, 64, 65, 70, 1]
    cu_seqlens = torch.tensor([2, *lengths]).cumsum(0).int()
    q, k, v = torch.randn(3, 1, sum(lengths) + 5, 2, 72).bfloat16()
    try:
        found = OPS.varlen_attention(q, k, v, 0.1, cu_seqlens)
        assert sorted(calls) == [(name, None), ("sdpa", (1, 65)), ("sdpa", (2, 70))]
        expected = attention_reference(q, k, v, 0.1, cu_seqlens)
        # Outputs of up to 4, rounded to 8 bits; PyTorch rounds the weights as well.
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-5)
        assert found[:, :2].count_nonzero() == found[:, -3:].count_nonzero() == 0
        for start, end in itertools.pairwise(cu_seqlens.tolist()):
            calls.clear()
            item = slice(start, end)
            alone = OPS.varlen_attention(q[:, item], k[:, item], v[:, item], 0.1)
            assert [who for who, _ in calls] == (
                [] if end == start else [name] if end - start <= 64 else ["sdpa"]
            )
            if end - start <= 64:
                assert torch.equal(alone, found[:, item])
    finally:
        cpu_choice._parts.cache_clear()
    with pytest.raises(ValueError, match="ascend within"):
        OPS.varlen_attention(q, k, v, 0.1, cu_seqlens + 9)


# ---------------------------------------------------------------- the setting


def layer(provider: str) -> MMEncoderAttention:
    config = VllmConfig(additional_config={"vllm_mmc": {"cpu_attention": provider}})
    with set_current_vllm_config(config):
        made: MMEncoderAttention = MMEncoderAttention(2, 64)
    return made


@pytest.mark.parametrize("provider", [*cpu_choice.PROVIDERS, "auto"])
def test_the_setting(provider: str) -> None:
    q, k, v = torch.randn(3, 1, 70, 2 * 64).bfloat16()
    if provider in cpu_kernel.levels() or provider in ("auto", "sdpa"):
        with mock.patch.object(
            cpu_kernel, "varlen_attention", wraps=cpu_kernel.varlen_attention
        ) as kernel:
            found = layer(provider)(q, k, v)
        if provider == "sdpa":
            kernel.assert_not_called()
        elif provider != "auto":
            assert kernel.call_args.kwargs["level"] == provider
        q, k, v = (x.unflatten(-1, (2, 64)) for x in (q, k, v))
        expected = attention_reference(q, k, v, 64**-0.5)
        torch.testing.assert_close(found, expected.flatten(2), rtol=0, atol=2**-5)
    else:
        message = f"cpu_attention is {provider}, .* this processor does not have it"
        with pytest.raises(ValueError, match=message):
            layer(provider)


def test_the_report_says_who() -> None:
    config, report = VllmConfig(), InstallReport()
    with set_current_vllm_config(config):
        root = torch.nn.Sequential(MMEncoderAttention(2, 8))
        install(root, EncoderPlan(), config, report=report)
    (line,) = report.lines()
    assert line == f"attention: {cpu_choice.describe()}"
