# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Versions of MiniCPM-o; the audio of 2.6 is in test_audio.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmc_testing.checkpoints.minicpmo import recipe
from mmc_testing.engine import (
    embed_inputs,
    load_model,
    stock_class,
    tower_context,
)
from mmc_testing.parity import assert_close
from vllm_mmc.compilation.counters import counters
from vllm_mmc.models import minicpmo


def build(**config: Any) -> Any:
    model_config = SimpleNamespace(hf_config=SimpleNamespace(**config))
    return minicpmo.CompiledMiniCPMO(
        vllm_config=SimpleNamespace(model_config=model_config)
    )


def test_the_version_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, model in minicpmo.VERSIONS.items():
        assert model.__name__ == "CompiledMiniCPMO" + version.replace(".", "_")
        monkeypatch.setitem(minicpmo.VERSIONS, version, lambda v=version, **_: v)
    assert [build(version="2.6"), build(version=4.5), build()] == ["2.6", "4.5", "2.6"]
    with pytest.raises(ValueError, match=r"only supports versions 2.6, 4.5"):
        build(version="3.0")


@pytest.mark.slow  # the encoder is that of 2.6, which test_audio.py holds to stock
def test_version_4_5(tmp_path: Path) -> None:
    """Another text model; of five tokens, not of two, one embedding."""
    family = recipe("4.5")
    checkpoint = family.write(tmp_path)
    clips = [family.request([seconds]) for seconds in (0.3, 12.5, 3.0, 29.0)]
    args = {"max_num_batched_tokens": 8192, **family.engine_args}
    stock = stock_class("MiniCPMO")
    with torch.inference_mode():
        with tower_context(checkpoint, **stock, **args) as config:
            model = load_model(config)
            # Alone: beside a longer clip stock's have other values.
            inputs = [embed_inputs(config, [clip]) for clip in clips]
            expected = [model.embed_multimodal(**alone)[0] for alone in inputs]
        with (
            counters.expect(structures=1, graphs=1, followers=3, recompiles=0),
            tower_context(checkpoint, compile_mm_encoder=True, **args) as config,
        ):
            model = load_model(config)
            found = model.embed_multimodal(**embed_inputs(config, clips))
    assert type(model) is minicpmo.CompiledMiniCPMO4_5
    assert [len(clip) for clip in expected] == [3, 125, 30, 290]
    for clip, reference in zip(found, expected, strict=True):
        assert_close(f"{len(clip)} embeddings", clip, reference, ratio=2e-5)
