# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Two encoders in one model; its audio alone is in test_audio.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniAudioEncoder,
)
from vllm.config import VllmConfig

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import (
    embed_inputs,
    load_model,
    stock_class,
    tower_context,
)
from mmc_testing.parity import assert_close
from vllm_mmc.compilation.counters import counters
from vllm_mmc.demo import media
from vllm_mmc.encoder.interfaces import CompiledEncoder

FAMILY = FAMILIES["qwen2_5_omni"]
SIZES = ((224, 224), (504, 588), (280, 336))


def inputs(config: VllmConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Three pictures, and two clips."""
    pictures = [
        {
            "prompt": FAMILY.prompt("Who?", images=1),
            "multi_modal_data": {"image": [media.photograph_at(*size)]},
        }
        for size in SIZES
    ]
    speech = [FAMILY.request([seconds]) for seconds in (3.0, 7.7)]
    return embed_inputs(config, pictures), embed_inputs(config, speech)


def embed(model: nn.Module, *given: dict[str, Any]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [torch.cat(list(model.embed_multimodal(**items))) for items in given]


def test_both_encoders(qwen2_5_omni: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    init = Qwen2_5OmniAudioEncoder.__init__

    def recorded(self: nn.Module, *args: Any) -> None:
        init(self, *args)
        devices.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr(Qwen2_5OmniAudioEncoder, "__init__", recorded)
    args = {"max_num_batched_tokens": 4096, **FAMILY.engine_args}
    stock = stock_class("Qwen2_5OmniModel")
    with tower_context(qwen2_5_omni, **stock, **args) as config:
        expected = embed(load_model(config), *inputs(config))
    with (
        counters.expect(structures=4, graphs=4, followers=2 * 3, recompiles=0),
        tower_context(qwen2_5_omni, compile_mm_encoder=True, **args) as config,
    ):
        model = load_model(config)
        model.warm_up_encoder()
        encoders = [m for m in model.modules() if isinstance(m, CompiledEncoder)]
        assert [e.token_multiple for e in encoders] == [1, 4]
        with counters.expect(graphs=0):
            given = inputs(config)
            found = embed(model, *given)
            both = embed(model, {**given[0], **given[1]})
    # Ours replaces Hugging Face's, which therefore has no memory.
    assert devices == [{"cpu"}, {"meta"}]
    assert_close("pictures", found[0], expected[0], ratio=2e-5)
    assert_close("speech", found[1], expected[1], ratio=2e-5)
    assert torch.equal(both[0], torch.cat(found))
    pixels, grids = given[0]["pixel_values"], given[0]["image_grid_thw"]
    theirs = FAMILY.hf_encoders["image"](qwen2_5_omni)
    with torch.inference_mode():
        output = theirs(pixels, grid_thw=grids)
    output = getattr(output, "pooler_output", output)
    assert_close("pictures (Hugging Face)", found[0], output, ratio=2e-5)
