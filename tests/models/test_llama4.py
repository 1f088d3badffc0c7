# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Llama4's compiled encoder equals stock eager and Hugging Face's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationMode

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, stock_class, tower_context
from mmc_testing.hf_encoders import read_weights
from mmc_testing.parity import allowance, assert_close, rms_ratio
from vllm_mmc.compilation.counters import counters
from vllm_mmc.models.llama4 import (
    CLASSES,
    CompiledLlama4ForConditionalGeneration,
    CompiledLlama4VisionModel,
)

STOCK = stock_class("Llama4ForConditionalGeneration")
TILES = (5, 1, 2, 9, 17)
Outputs = dict[int, torch.Tensor]


def images(tiles: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tiles)
    return torch.randn(tiles, 3, 112, 112, generator=generator).to(dtype)


def run(model: nn.Module, dtype: torch.dtype) -> Outputs:
    with torch.inference_mode():
        return {
            tiles: model.encode_image_chunks(
                images(tiles, dtype), use_data_parallel=False
            )
            for tiles in TILES
        }


def run_stock(checkpoint: Path, dtype: torch.dtype) -> Outputs:
    name = str(dtype).removeprefix("torch.")
    with tower_context(checkpoint, dtype=name, **STOCK) as vllm_config:
        model = load_model(vllm_config)
        embed = model.encode_image_chunks

        def in_pairs(pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            # One tile alone is what stock's patch embedding cannot do on CPU.
            return embed(pixels.repeat(2, 1, 1, 1), **kwargs)[: len(pixels)]

        model.encode_image_chunks = in_pairs
        return run(model, dtype)


@pytest.fixture(scope="module")
def stock(llama4: Path) -> Callable[[torch.dtype], Outputs]:
    """Stock eager outputs, once per dtype."""
    made: dict[torch.dtype, Outputs] = {}

    def outputs(dtype: torch.dtype) -> Outputs:
        if dtype not in made:
            made[dtype] = run_stock(llama4, dtype)
        return made[dtype]

    return outputs


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        (torch.float32, 3),
        # Whisper's test has this pair by default.
        pytest.param(torch.bfloat16, 2, marks=pytest.mark.slow),
    ],
    ids=["float32, mode 3", "bfloat16, mode 2"],
)
def test_equals_stock_and_hugging_face(
    dtype: torch.dtype,
    mode: int,
    llama4: Path,
    stock: Callable[[torch.dtype], Outputs],
) -> None:
    with (
        counters.expect(structures=4, graphs=4, followers=3, recompiles=0),
        tower_context(
            llama4,
            dtype=str(dtype).removeprefix("torch."),
            compile_mm_encoder=True,
            mode=CompilationMode(mode),
        ) as vllm_config,
    ):
        model = load_model(vllm_config)
        assert type(model) is CompiledLlama4ForConditionalGeneration
        ours = run(model, dtype)
        model.warm_up_encoder()  # the first sizes have compiled all of it
    truth, reference = stock(torch.float32), stock(dtype)
    hf = FAMILIES["llama4"].hf_encoders["image"](llama4)
    for tiles in TILES:
        allowed = allowance(reference=reference[tiles], truth=truth[tiles])
        name = f"{tiles} tiles"
        assert_close(name, ours[tiles], truth[tiles], ratio=allowed, dtype=dtype)
        with torch.inference_mode():
            expected = hf(images(tiles, torch.float32))
        assert_close(
            f"{name} (Hugging Face)", ours[tiles], expected, ratio=allowed, dtype=dtype
        )


def test_a_follower_with_its_leaders_weights_would_show(
    llama4: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    """The comparison above can fail: layers are far from interchangeable."""
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        layers = model.vision_model.model.layers
        layers[2] = layers[0]
        swapped = run(model, torch.float32)
    for tiles, expected in stock(torch.float32).items():
        assert rms_ratio(swapped[tiles], expected) > 100 * allowance(
            reference=expected, truth=expected
        )


def test_off_by_default_and_then_exactly_stock(
    llama4: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    with tower_context(llama4) as vllm_config:
        model = load_model(vllm_config)
        assert type(model) is CompiledLlama4ForConditionalGeneration
        assert not {type(m) for m in model.modules()} & set(CLASSES.values())
        with counters.expect(structures=0, graphs=0), torch.inference_mode():
            ours = model.encode_image_chunks(
                images(5, torch.float32).repeat(2, 1, 1, 1), use_data_parallel=False
            )
    assert torch.equal(ours[:5], stock(torch.float32)[5])


def test_names_and_parameters_are_those_of_stock(llama4: Path) -> None:
    def names(model: nn.Module) -> tuple[list[str], list[Any]]:
        modules = [name for name, _ in model.named_modules()]
        return modules, [(n, tuple(p.shape)) for n, p in model.named_parameters()]

    with tower_context(llama4, **STOCK) as vllm_config:
        expected = names(load_model(vllm_config))
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        assert names(load_model(vllm_config)) == expected


def test_nothing_is_written_into(llama4: Path) -> None:
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        pixels = images(3, torch.float32)
        tensors = [pixels, *model.state_dict().values(), *model.buffers()]
        before = [(tensor.clone(), tensor._version) for tensor in tensors]
        with torch.inference_mode():
            model.encode_image_chunks(pixels, use_data_parallel=False)
    for tensor, (value, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor._version == version


def test_tiles_do_not_depend_on_their_neighbours(llama4: Path) -> None:
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        tower = load_model(vllm_config).vision_model
        pixels = images(5, torch.float32)
        with torch.inference_mode():
            together = tower(pixels)
            alone = [tower(pixels[i : i + 1]) for i in range(5)]
    # Products of another height add up in another order.
    assert_close("tiles", together, torch.cat(alone), ratio=1e-5)


def test_the_engine_s_limit_in_tokens(llama4: Path) -> None:
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        shapes = model.vision_model.encoder_shapes
        # 2048 embeddings at once, 16 of a tile, which has 64 patches and a class token.
        assert (shapes.limit, shapes.step) == (2048 // 16 * 65, 65)


def test_an_encoder_that_is_left_out(llama4: Path) -> None:
    with tower_context(
        llama4, compile_mm_encoder=True, limit_mm_per_prompt={"image": 0}
    ) as vllm_config:
        model = load_model(vllm_config)
        with counters.expect(structures=0):
            model.warm_up_encoder()
        assert model.embed_input_ids(torch.arange(3)).shape == (3, 128)


def test_one_token_does_not_recompile_the_sharded_embedding(llama4: Path) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend
    from vllm.model_executor.layers import vocab_parallel_embedding as embedding

    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        table = model.language_model.model.embed_tokens
        backend = CompileCounterWithBackend("inductor")
        masked = embedding.get_masked_input_and_mask._torchdynamo_orig_callable
        ids = torch.arange(7)
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            expected = model.embed_input_ids(ids)
            # As on a rank of two: the sum over ranks is one of this process alone.
            patch.setattr(table, "tp_size", 2)
            patch.setattr(
                embedding,
                "get_masked_input_and_mask",
                torch.compile(masked, dynamic=True, backend=backend),
            )
            for count in (7, 1, 3, 1):
                assert torch.equal(model.embed_input_ids(ids[:count]), expected[:count])
    assert backend.frame_count == 1
    assert not hasattr(ids, "_dynamo_unbacked_indices")


def test_encoder_cuda_graph_protocol(llama4: Path) -> None:
    """A capture's buffers, padded to its budget, give the same embeddings."""
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        captured = model.prepare_encoder_cudagraph_capture_inputs(
            80, 5, 1, torch.device("cpu"), torch.float32
        )
        buffer = captured.values["pixel_values"]
        pixels = images(3, torch.float32)
        buffer[:3] = pixels
        with torch.inference_mode():
            expected = model.encoder_eager_forward({"pixel_values": pixels})
            actual = model.encoder_cudagraph_forward({"pixel_values": buffer})
    assert_close("embeddings", actual[: len(expected)], expected, ratio=1e-5)


def test_encoder_alone(llama4: Path) -> None:
    """Without an engine, so without its limit; see docs/custom-serving.md."""
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    hf = FAMILIES["llama4"].hf_encoders["image"](llama4)
    pixels = images(3, torch.float32)
    with tower_context(llama4, compile_mm_encoder=True) as vllm_config:
        model_config = vllm_config.model_config
        tower = CompiledLlama4VisionModel(model_config.hf_config.vision_config)
        assert tower.encoder_shapes.limit is None
        loaded = tower.load_weights(read_weights(llama4, "vision_model.").items())
        assert loaded == {name for name, _ in tower.named_parameters()}
        process_weights_after_loading(tower, model_config, torch.device("cpu"))
        with counters.expect(graphs=3, fallbacks=0), torch.inference_mode():
            actual = tower(pixels)
            expected = hf.tower(pixels).last_hidden_state
    assert_close("embeddings", actual, expected, ratio=2e-5)
