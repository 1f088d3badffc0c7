# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Weights that are replaced in a running model: compiled encoders compute with them."""

from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, stock_class, tower_context
from vllm_mmc.compilation.counters import counters

GRID = [[1, 8, 12], [1, 4, 4]]
PATCHES = torch.randn(112, 3 * 2 * 14 * 14, generator=torch.manual_seed(0))


def reload(model: nn.Module, config: VllmConfig, checkpoint: Path) -> None:
    """As vLLM's `reload_weights` does."""
    initialize_layerwise_reload(model)
    model.load_weights(load_file(checkpoint / "model.safetensors").items())
    finalize_layerwise_reload(model, config.model_config)


def test_reloaded_weights(qwen2_5_vl: Path, tmp_path: Path) -> None:
    """As a fresh start with them, in the same graphs; and the way back, to the bit."""
    others = FAMILIES["qwen2_5_vl"].write(tmp_path / "others", depth=4, seed=1)
    stock = stock_class("Qwen2_5_VLForConditionalGeneration")
    with tower_context(others, **stock) as config, torch.inference_mode():
        expected = load_model(config).visual(PATCHES, GRID)
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as config:
        model = load_model(config)
        outputs = []
        with torch.inference_mode():
            outputs.append(model.visual(PATCHES, GRID))
        for checkpoint in (others, qwen2_5_vl):
            reload(model, config, checkpoint)
            nothing = dict.fromkeys(("structures", "graphs", "rescues"), 0)
            with counters.expect(**nothing), torch.inference_mode():
                outputs.append(model.visual(PATCHES, GRID))
    first, second, third = outputs
    torch.testing.assert_close(second, expected)
    assert torch.equal(third, first)
    assert (second - first).abs().max() > 0.1
