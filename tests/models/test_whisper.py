# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Whisper's compiled encoder equals stock eager and Hugging Face's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from transformers import WhisperFeatureExtractor
from vllm.config import CompilationMode
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.models.utils import AutoWeightsLoader

from vllm_mmc.compilation.counters import counters
from vllm_mmc.models.whisper import (
    ENCODER_REGIONS,
    CompiledWhisperEncoder,
    CompiledWhisperForConditionalGeneration,
)
from vllm_mmc.testing import media
from vllm_mmc.testing.checkpoints import FAMILIES, load_hf_whisper_encoder
from vllm_mmc.testing.checkpoints.common import read_weights
from vllm_mmc.testing.engine import load_model, stock_class, tower_context
from vllm_mmc.testing.parity import allowance, assert_close, rms_ratio

STOCK = stock_class("WhisperForConditionalGeneration")
# Room for five items in an encoder call.
ARGS = {**FAMILIES["whisper"].engine_args, "max_num_batched_tokens": 8192}
# Seconds of speech, a batch each. All become 30 s: Whisper attends to its padding.
BATCHES = ((3.0, 30.0), (0.3,), (12.5, 0.3, 29.0, 1.0, 7.7))
Outputs = list[torch.Tensor]


def features(seconds: tuple[float, ...], dtype: torch.dtype) -> torch.Tensor:
    """[items, 80, 3000] of real speech."""
    extract = WhisperFeatureExtractor()
    speech = [media.speech(s) for s in seconds]
    found = extract(speech, sampling_rate=media.SPEECH_RATE, return_tensors="pt")
    return found.input_features.to(dtype)


def run(model: nn.Module, dtype: torch.dtype) -> Outputs:
    with torch.inference_mode():
        return [
            torch.stack(model.embed_multimodal(input_features=features(batch, dtype)))
            for batch in BATCHES
        ]


def context(checkpoint: Path, dtype: torch.dtype = torch.float32, **args: Any) -> Any:
    name = str(dtype).removeprefix("torch.")
    return tower_context(checkpoint, dtype=name, **{**ARGS, **args})


@pytest.fixture(scope="module")
def stock(whisper: Path) -> Callable[[torch.dtype], Outputs]:
    """Stock eager outputs, once per dtype."""
    made: dict[torch.dtype, Outputs] = {}

    def outputs(dtype: torch.dtype) -> Outputs:
        if dtype not in made:
            with context(whisper, dtype, **STOCK) as vllm_config:
                made[dtype] = run(load_model(vllm_config), dtype)
        return made[dtype]

    return outputs


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        # Llama4's test has this pair by default.
        pytest.param(torch.float32, 3, marks=pytest.mark.slow),
        (torch.bfloat16, 2),
    ],
    ids=["float32, mode 3", "bfloat16, mode 2"],
)
def test_equals_stock_and_hugging_face(
    dtype: torch.dtype,
    mode: int,
    whisper: Path,
    stock: Callable[[torch.dtype], Outputs],
) -> None:
    with (
        counters.expect(structures=1, graphs=1, followers=3, recompiles=0),
        context(
            whisper, dtype, compile_mm_encoder=True, mode=CompilationMode(mode)
        ) as vllm_config,
    ):
        model = load_model(vllm_config)
        assert type(model) is CompiledWhisperForConditionalGeneration
        ours = run(model, dtype)
        model.warm_up_encoder()  # the first batch has compiled all of it
    hf = load_hf_whisper_encoder(whisper)
    for batch, found, truth, reference in zip(
        BATCHES, ours, stock(torch.float32), stock(dtype), strict=True
    ):
        allowed = allowance(reference=reference, truth=truth)
        assert_close(f"{batch}", found, truth, ratio=allowed, dtype=dtype)
        with torch.inference_mode():
            expected = hf(features(batch, torch.float32)).last_hidden_state
        assert_close(
            f"{batch} (Hugging Face)", found, expected, ratio=allowed, dtype=dtype
        )


def test_a_follower_with_its_leaders_weights_would_show(
    whisper: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    """The comparison above can fail: layers are far from interchangeable."""
    with context(whisper, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        layers = model.model.encoder.layers
        layers[2] = layers[0]
        swapped = run(model, torch.float32)
    for found, expected in zip(swapped, stock(torch.float32), strict=True):
        assert rms_ratio(found, expected) > 100 * allowance(
            reference=expected, truth=expected
        )


def test_off_by_default_and_then_exactly_stock(
    whisper: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    with context(whisper) as vllm_config:
        model = load_model(vllm_config)
        assert type(model) is CompiledWhisperForConditionalGeneration
        assert not {type(m) for m in model.modules()} & set(ENCODER_REGIONS.values())
        with counters.expect(structures=0, graphs=0):
            ours = run(model, torch.float32)
    assert all(map(torch.equal, ours, stock(torch.float32)))


def test_nothing_is_written_into(whisper: Path) -> None:
    with context(whisper, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        mel = features((3.0, 1.0), torch.float32)
        tensors = [mel, *model.state_dict().values(), *model.buffers()]
        before = [(tensor.clone(), tensor._version) for tensor in tensors]
        with torch.inference_mode():
            model.embed_multimodal(input_features=mel)
    for tensor, (value, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor._version == version


def test_items_do_not_depend_on_their_neighbours(whisper: Path) -> None:
    mel = features((30.0, 0.3, 7.7, 3.0), torch.float32)
    with context(whisper, compile_mm_encoder=True) as vllm_config:
        encoder = load_model(vllm_config).model.encoder
        with torch.inference_mode():
            together = encoder(mel)
            alone = torch.cat([encoder(mel[i : i + 1]) for i in range(4)])
            turned = encoder(mel.flip(0)).flip(0)
    # Products of another height add up in another order.
    assert_close("alone", together, alone, ratio=1e-5)
    assert_close("at another position", together, turned, ratio=1e-5)


def test_every_form_of_the_input(whisper: Path) -> None:
    """As stock: a tensor, a list of items, a list of batches, and shorter items."""
    mel = features((3.0, 1.0, 2.0), torch.float32)
    forms = [mel, list(mel), tuple(mel), [mel], [mel[:2], mel[2:]], mel[..., :1000]]
    outputs = []
    for compiled in (False, True):
        with context(whisper, compile_mm_encoder=compiled) as vllm_config:
            encoder = load_model(vllm_config).model.encoder
            assert isinstance(encoder, CompiledWhisperEncoder) == compiled
            with torch.inference_mode():
                outputs.append([encoder(form) for form in forms])
    for index, (expected, found) in enumerate(zip(*outputs, strict=True)):
        assert_close(f"form {index}", found, expected, ratio=2e-5)


def test_no_request_compiles(whisper: Path) -> None:
    """After the warm-up, over twenty mixes of lengths."""
    with context(whisper, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        shapes = model.model.encoder.encoder_shapes
        assert (shapes.limit, shapes.step) == (8192 // 1500 * 1500, 1500)
        model.warm_up_encoder()
        generator = torch.Generator().manual_seed(0)
        with (
            torch.inference_mode(),
            counters.expect(graphs=0, artifact_loads=0, fallbacks=0),
        ):
            for _ in range(20):
                items = int(torch.randint(1, 6, (), generator=generator))
                seconds = 0.3 + 29.7 * torch.rand(items, generator=generator)
                mel = features(tuple(seconds.tolist()), torch.float32)
                model.embed_multimodal(input_features=mel)


def test_encoder_alone(whisper: Path) -> None:
    """Without an engine, so without its limit; see docs/custom-serving.md."""
    mel = features((3.0, 1.0), torch.float32)
    hf = load_hf_whisper_encoder(whisper)
    with context(whisper, compile_mm_encoder=True) as vllm_config:
        encoder = CompiledWhisperEncoder(vllm_config=vllm_config)
        assert encoder.encoder_shapes.limit is None
        weights = read_weights(whisper, "model.encoder.")
        biases = {
            name.replace("weight", "bias"): torch.zeros(len(weight))
            for name, weight in weights.items()
            if name.endswith("k_proj.weight")  # vLLM's has a bias
        }
        mapper = CompiledWhisperForConditionalGeneration.hf_to_vllm_mapper
        loaded = AutoWeightsLoader(encoder).load_weights(
            (weights | biases).items(), mapper=mapper
        )
        assert loaded == {name for name, _ in encoder.named_parameters()}
        process_weights_after_loading(
            encoder, vllm_config.model_config, torch.device("cpu")
        )
        with counters.expect(graphs=1, fallbacks=0), torch.inference_mode():
            found = encoder(mel)
            expected = hf(mel).last_hidden_state
    assert_close("embeddings", found, expected, ratio=2e-5)
