# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The audio encoders of Gemma 4 and Gemma 3n: packed, and equal to Hugging Face's."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn as nn
from transformers import AutoModel
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nAudioConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModel
from vllm.config import VllmConfig

from mmc_testing.engine import load_model, tower_context
from mmc_testing.parity import allowance, assert_close
from mmc_testing.recipes import RECIPES
from tests.encoder.tower import prepare, tower_config
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.counters import counters
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.encoder.model import attach_regions
from vllm_mmc.encoder.survey import survey
from vllm_mmc.models.gemma_audio import ENCODER_REWRITES, CompiledGemma4AudioModel

MELS = 32
# Frames of each clip. A token is four frames, a chunk twelve tokens.
BATCHES = [
    (1,),
    (48,),
    (49,),
    (200,),
    (333,),
    (130, 64),
    (7, 300, 95),
    (96, 96),
    (20, 1, 190, 50),
    (4, 2, 3),
]


def gemma4(attention_context_right: int = 0) -> nn.Module:
    config = Gemma4AudioConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        subsampling_conv_channels=[MELS, 8],
        output_proj_dims=96,
        attention_context_right=attention_context_right,
    )
    tower = AutoModel.from_config(config)
    tower.post_init()
    return tower


def gemma3n(conf_attention_context_right: int = 0) -> nn.Module:
    config = Gemma3nAudioConfig(
        hidden_size=64,
        conf_num_attention_heads=4,
        conf_num_hidden_layers=3,
        input_feat_size=MELS,
        sscp_conv_channel_size=(16, 8),
        conf_attention_context_right=conf_attention_context_right,
    )
    return AutoModel.from_config(config)


BUILT = {"gemma4": gemma4, "gemma3n": gemma3n}


@pytest.mark.parametrize("switch", [False, True])
def test_only_compile_mm_encoder_exchanges_classes(
    switch: bool, tmp_path: Path
) -> None:
    recipe = RECIPES["gemma4_audio"]
    checkpoint = recipe.write(tmp_path)
    args = {"compile_mm_encoder": switch, **recipe.engine_args}
    with tower_context(checkpoint, **args) as config:
        tower = load_model(config).audio_tower
    assert type(tower) is (CompiledGemma4AudioModel if switch else Gemma4AudioModel)


@pytest.fixture(scope="module")
def vllm_config() -> Iterator[VllmConfig]:
    with tower_config(compile_mm_encoder=True) as config, stock_compile_off(config):
        config.compilation_config.backend = "eager"
        yield config


@pytest.fixture(params=BUILT)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def both(
    family: str, dtype: torch.dtype, config: VllmConfig, **kwargs: int
) -> tuple[nn.Module, nn.Module]:
    """Stock's tower, and a copy of it that is ours."""
    stock = prepare(BUILT[family](**kwargs)).to(dtype)
    ours = install(deepcopy(stock), EncoderPlan(classes=ENCODER_REWRITES), config)
    assert (type(stock), type(ours)) in ENCODER_REWRITES.items()
    assert list(ours.state_dict()) == list(stock.state_dict())
    return stock, ours


def clips(lengths: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, MELS, generator=generator).to(dtype) for n in lengths]


def encode(tower: nn.Module, features: list[torch.Tensor]) -> list[torch.Tensor]:
    """The embeddings of each clip, from one call with the batch that vLLM makes."""
    mels = nn.utils.rnn.pad_sequence(features, batch_first=True)
    lengths = torch.tensor([len(clip) for clip in features])
    valid = torch.arange(mels.shape[1]) < lengths[:, None]
    with torch.inference_mode():
        if "Gemma4" in type(tower).__name__:
            output = tower(mels, valid)
            kept = output.attention_mask
        else:
            output = tower(mels, ~valid)
            kept = ~output.audio_mel_mask
    assert output.last_hidden_state.shape[:2] == kept.shape
    return [x[k] for x, k in zip(output.last_hidden_state, kept, strict=True)]


def alone(tower: nn.Module, features: list[torch.Tensor]) -> list[torch.Tensor]:
    return [encode(tower, [clip])[0] for clip in features]


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_a_clip_is_in_any_batch_what_stock_makes_of_it_alone(
    family: str, lengths: tuple[int, ...], vllm_config: VllmConfig
) -> None:
    stock, ours = both(family, torch.float32, vllm_config)
    features = clips(lengths, torch.float32)
    truth = alone(stock, features)
    for found, expected in zip(encode(ours, features), truth, strict=True):
        # Sums in another order, through three layers; entries are around 1.
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)

    stock, ours = stock.bfloat16(), ours.bfloat16()
    features = clips(lengths, torch.bfloat16)
    rounded = torch.cat(alone(stock, features))
    truth = torch.cat(alone(stock.float(), [clip.float() for clip in features]))
    assert_close(
        str(lengths),
        torch.cat(encode(ours, features)),
        truth,
        ratio=allowance(reference=rounded, truth=truth),
        dtype=torch.bfloat16,
    )


def test_a_batch_is_what_stock_makes_of_it(vllm_config: VllmConfig) -> None:
    """Of Gemma 4: what Gemma 3n makes of a clip depends on the padding behind it."""
    stock, ours = both("gemma4", torch.float32, vllm_config)
    features = clips((7, 300, 95), torch.float32)
    both_sides = zip(encode(ours, features), encode(stock, features), strict=True)
    for found, expected in both_sides:
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("gemma4", "attention_context_right"),
        ("gemma3n", "conf_attention_context_right"),
    ],
)
def test_a_window_that_looks_ahead(
    family: str, setting: str, vllm_config: VllmConfig
) -> None:
    stock, ours = both(family, torch.float32, vllm_config, **{setting: 3})
    features = clips((7, 300, 95), torch.float32)
    expected = alone(stock, features)
    for found, truth in zip(encode(ours, features), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=2e-5, atol=2e-5)


def test_one_graph_serves_every_batch(family: str, vllm_config: VllmConfig) -> None:
    stock, ours = both(family, torch.float32, vllm_config)
    batches = [clips(lengths, torch.float32) for lengths in BATCHES]
    calls = [partial(encode, ours, batches[index]) for index in (4, 0, 5)]
    attach_regions(ours, survey(ours, calls), vllm_config)
    with (
        mock.patch.dict(shared_graph._structures, clear=True),
        counters.expect(graphs=1, rescues=0, fallbacks=0),
    ):
        for features in batches:
            found, expected = encode(ours, features), alone(stock, features)
            for x, truth in zip(found, expected, strict=True):
                torch.testing.assert_close(x, truth, rtol=2e-5, atol=2e-5)
