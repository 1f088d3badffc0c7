# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""An encoder of a release without one private name, or without its tower."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from transformers.models.qwen2_audio import Qwen2AudioEncoder
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import mm_encoder_attention as stock
from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod
from vllm.model_executor.models.utils import StageMissingLayer
from vllm.multimodal import MULTIMODAL_REGISTRY

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, tower_context
from mmc_testing.logs import warnings_of
from vllm_mmc.attention.mm_encoder_attention import (
    MMEncoderAttention,
)
from vllm_mmc.compat import symbols
from vllm_mmc.compat.symbols import Symbol
from vllm_mmc.encoder import dummy_inputs
from vllm_mmc.encoder.audio_input import AudioValidationMixin, check_requests
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.layers import upcast
from vllm_mmc.models.qwen2_audio import CompiledQwen2AudioEncoder

Remove = Callable[..., None]


@pytest.fixture
def remove(monkeypatch: pytest.MonkeyPatch) -> Remove:
    there = symbols._look_up
    symbols._warn.cache_clear()

    def removed(*gone: Symbol) -> None:
        monkeypatch.setattr(
            symbols,
            "_look_up",
            lambda s: (None, f"there is no {s.path}") if s in gone else there(s),
        )

    return removed


def qwen2_audio_model(checkpoint: Path, **overrides: Any) -> nn.Module:
    engine_args = {**FAMILIES["qwen2_audio"].engine_args, **overrides}
    with tower_context(checkpoint, compile_mm_encoder=True, **engine_args) as config:
        return load_model(config)


@pytest.mark.parametrize(
    "gone", [None, symbols.WHISPER_WEIGHTS, symbols.TOWER_NAMES], ids=str
)
def test_a_native_encoder(
    gone: Symbol | None, qwen2_audio: Path, remove: Remove
) -> None:
    if gone is not None:
        remove(gone)
    model = qwen2_audio_model(qwen2_audio)
    if gone is None:
        assert type(model.audio_tower) is CompiledQwen2AudioEncoder
        assert model.encoder_eager_because is None
    else:
        assert type(model.audio_tower) is Qwen2AudioEncoder
        assert model.encoder_eager_because == f"there is no {gone.path}"
    devices = {p.device.type for p in model.audio_tower.parameters()}
    assert devices == {"cpu"}


def test_a_native_encoder_that_is_missing(qwen2_audio: Path) -> None:
    model = qwen2_audio_model(qwen2_audio, limit_mm_per_prompt={"audio": 0})
    assert type(model.audio_tower) is StageMissingLayer
    assert model.encoder_eager_because is None
    model.warm_up_encoder()


@pytest.mark.parametrize("inner", [None, nn.Linear(2, 2)])
def test_a_tower_of_another_pipeline_rank(inner: nn.Module | None) -> None:
    root = nn.ModuleDict({"tower": StageMissingLayer("vision_tower", inner)})
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        install(root, EncoderPlan(classes={nn.Linear: nn.Bilinear}), config)
    assert type(root["tower"]) is StageMissingLayer
    assert inner is None or type(inner) is nn.Linear


def test_attention(remove: Remove) -> None:
    remove(symbols.FORWARD_METHOD)
    config = VllmConfig()
    with set_current_vllm_config(config):
        root = nn.ModuleList([stock.MMEncoderAttention(2, 8)])
        install(root, EncoderPlan(), config)
        assert type(root[0]) is stock.MMEncoderAttention
        remove()
        install(root, EncoderPlan(), config)
        assert type(root[0]) is MMEncoderAttention


def test_products(
    remove: Remove, qwen2_audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcast, "needs_upcast", lambda _: True)
    remove(symbols.CPU_LINEAR)
    engine_args = FAMILIES["qwen2_audio"].engine_args
    with tower_context(qwen2_audio, **engine_args), warnings_of(symbols) as logged:
        layer = ReplicatedLinear(8, 8, disable_tp=True)
        root = nn.ModuleList([layer, layer, nn.Conv1d(1, 1, 1)])
        install(root, EncoderPlan(), VllmConfig())
        assert type(layer.quant_method) is UnquantizedLinearMethod
    assert len(logged) == 1 and "cpu_unquantized_gemm" in logged[0]


def test_the_embedding_of_text(remove: Remove, qwen2_audio: Path) -> None:
    model = qwen2_audio_model(qwen2_audio)
    ids = torch.tensor([3])
    expected = model.embed_input_ids(ids)
    remove(symbols.MARK_UNBACKED)
    assert torch.equal(model.embed_input_ids(ids), expected)


@pytest.mark.parametrize("name", ["PROCESSOR_FACTORY", "PROCESSING_INFO"])
def test_the_checks_of_audio(name: str, remove: Remove) -> None:
    factories = SimpleNamespace(info=dict)
    model: Any = type("Model", (), {"_processor_factory": factories})
    remove(getattr(symbols, name))
    with warnings_of(symbols) as logged:
        check_requests(model, AudioValidationMixin)
    assert model._processor_factory is factories and len(logged) == 1


def test_dummy_audio(remove: Remove, qwen2_audio: Path) -> None:
    engine_args = FAMILIES["qwen2_audio"].engine_args
    with tower_context(qwen2_audio, **engine_args) as config:
        assert len(list(dummy_inputs.batches(config))) == 3
        remove(symbols.DUMMY_AUDIOS)
        assert list(dummy_inputs.batches(config))
        processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        audios = processor.dummy_inputs._get_dummy_audios(length=7, num_audios=1)
        assert np.shape(audios) == (1, 7)
