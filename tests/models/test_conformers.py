# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Conformers some of whose classes are exchanged: stock's values, one graph."""

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.utils.torch_utils import set_default_torch_dtype

from mmc_testing.parity import assert_close
from tests.encoder import stand_ins
from tests.encoder.towers import TOWERS, Call, encoder_rewrites, run, tower_config
from vllm_mmc.catalog import REWRITES
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.counters import counters
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.encoder.model import attach_regions
from vllm_mmc.encoder.survey import survey
from vllm_mmc.models import auto

NAMES = [
    "cohere_asr",
    "fireredasr2",
    "granite_speech",
    "granite_speech_plus",
    "parakeet",
]
# Beside the sizes of the tower test: one frame, and one more than a whole context.
FURTHER = {"granite_speech": [(1, 1), (1, 21)], "granite_speech_plus": [(2, 81)]}
# The RMS of the difference to that of the values. In float32 products are added up in
# another order. In bfloat16, eager rounds after each operation and a kernel only once.
RATIOS = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture(scope="module")
def vllm_config() -> Iterator[VllmConfig]:
    with tower_config(compile_mm_encoder=True) as config, stock_compile_off(config):
        yield config


def in_dtype(call: Call, dtype: torch.dtype) -> Call:
    def cast(value: Any) -> Any:
        return value.to(dtype) if torch.is_floating_point(value) else value

    def make(*size: Any) -> Any:
        args, kwargs = call.make(*size)
        return tuple(map(cast, args)), {k: cast(v) for k, v in kwargs.items()}

    return Call(make, call.size)


@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", RATIOS)
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_stock(
    name: str,
    dtype: torch.dtype,
    backend: str,
    vllm_config: VllmConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_config.compilation_config, "backend", backend)
    tower = TOWERS[name]
    with set_default_torch_dtype(dtype):
        module = tower.build(vllm_config)
    calls = [in_dtype(call, dtype) for call in (*tower.survey, *tower.further)]
    calls += [Call(calls[0].make, size) for size in FURTHER.get(name, ())]
    expected = [run(module, call) for call in calls]

    def compare() -> None:
        for call, outputs in zip(calls, expected, strict=True):
            for ours, stock in zip(run(module, call), outputs, strict=True):
                assert_close(f"{name} {call}", ours, stock, ratio=RATIOS[dtype])

    rewrites = encoder_rewrites(name)
    module = install(module, EncoderPlan(classes=rewrites), vllm_config)
    assert {type(m) for m in module.modules()} >= set(rewrites.values())
    compare()
    attach_regions(
        module,
        survey(module, [partial(run, module, call) for call in calls[:3]]),
        vllm_config,
    )
    graphs = counters.graphs + counters.artifact_loads
    with mock.patch.dict(shared_graph._structures, clear=True):
        compare()
    assert counters.graphs + counters.artifact_loads - graphs == 1


@pytest.mark.parametrize("architecture", REWRITES)
def test_the_class_of_an_architecture_exchanges_them(architecture: str) -> None:
    with stand_ins.torchaudio():
        compiled: Any = getattr(auto, f"Compiled{architecture}")
    plan = compiled.encoder_plan
    assert plan.classes and not plan.is_by_hand  # it is surveyed
    for stock, ours in plan.classes.items():
        assert issubclass(ours, stock)
        assert issubclass(stock, nn.Module)
        # Parameters and attributes are those that stock's constructor has made.
        assert ours.__init__ is stock.__init__


class Stock(nn.Module, SupportsMultiModal):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        with self._mark_tower_model(vllm_config, "image"):
            self.encoder = TOWERS["granite_speech"].build(vllm_config)


@pytest.mark.parametrize("switch", [True, False])
def test_without_the_switch_nothing_is_exchanged(
    switch: bool, vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vllm_config.compilation_config
    monkeypatch.setattr(config, "compile_mm_encoder", switch)
    rewrites = encoder_rewrites("granite_speech")

    class Ours(auto.AutoCompiledEncoder, Stock):
        encoder_plan = EncoderPlan(classes=rewrites)

    found = {type(module) for module in Ours(vllm_config=vllm_config).modules()}
    exchanged, left = set(rewrites.values()), set(rewrites)
    assert found & (exchanged | left) == (exchanged if switch else left)
