# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2.5-VL's compiled encoder equals stock eager and Hugging Face's tower."""

import random
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationMode

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, stock_class, tower_context
from mmc_testing.parity import allowance, assert_close, rms_ratio
from vllm_mmc.compilation.counters import counters
from vllm_mmc.models.qwen2_5_vl import (
    CLASSES,
    CompiledQwen2_5_VLForConditionalGeneration,
)

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
PATCH_VALUES = 3 * 2 * 14 * 14

# Image, strip, cut windows, 4096 patches, batches, video, video with an image.
GRIDS = {
    "smallest": [[1, 2, 2]],
    "strip": [[1, 2, 36]],
    "cut windows": [[1, 18, 26]],
    "4096 patches": [[1, 64, 64]],
    "three images": [[1, 16, 16], [1, 2, 2], [1, 6, 14]],
    "video": [[5, 10, 12]],
    "video and image": [[2, 8, 10], [1, 12, 4]],
}
Outputs = dict[str, torch.Tensor]


def patches(grid: list[list[int]], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(sum, grid)))
    count = sum(t * h * w for t, h, w in grid)
    return torch.randn(count, PATCH_VALUES, generator=generator).to(dtype)


def run(tower: nn.Module, dtype: torch.dtype) -> Outputs:
    with torch.inference_mode():
        return {name: tower(patches(g, dtype), g) for name, g in GRIDS.items()}


def run_vllm(checkpoint: Path, dtype: torch.dtype, **context: Any) -> Outputs:
    name = str(dtype).removeprefix("torch.")
    with tower_context(checkpoint, dtype=name, **context) as vllm_config:
        return run(load_model(vllm_config).visual, dtype)


@pytest.fixture(scope="module")
def stock(qwen2_5_vl: Path) -> Callable[[torch.dtype], Outputs]:
    """Stock eager outputs, once per dtype."""
    made: dict[torch.dtype, Outputs] = {}

    def outputs(dtype: torch.dtype) -> Outputs:
        if dtype not in made:
            made[dtype] = run_vllm(qwen2_5_vl, dtype, **stock_class(ARCHITECTURE))
        return made[dtype]

    return outputs


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        (torch.bfloat16, 3),
        # Other models' tests have these by default.
        pytest.param(torch.float32, 2, marks=pytest.mark.slow),
        pytest.param(torch.float32, 3, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 2, marks=pytest.mark.slow),
    ],
)
def test_equals_stock_and_hugging_face(
    dtype: torch.dtype,
    mode: int,
    qwen2_5_vl: Path,
    stock: Callable[[torch.dtype], Outputs],
) -> None:
    with counters.expect(structures=3, followers=3, recompiles=0):
        ours = run_vllm(
            qwen2_5_vl, dtype, compile_mm_encoder=True, mode=CompilationMode(mode)
        )
    truth, reference = stock(torch.float32), stock(dtype)
    hf = FAMILIES["qwen2_5_vl"].hf_encoders["image"](qwen2_5_vl)
    for name, grid in GRIDS.items():
        allowed = allowance(reference=reference[name], truth=truth[name])
        assert_close(name, ours[name], truth[name], ratio=allowed, dtype=dtype)
        with torch.inference_mode():
            expected = hf(patches(grid, torch.float32), torch.tensor(grid))
        assert_close(
            f"{name} (Hugging Face)",
            ours[name],
            expected.pooler_output,
            ratio=allowed,
            dtype=dtype,
        )


def test_a_follower_with_its_leaders_weights_would_show(
    qwen2_5_vl: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    """The comparison above can fail: blocks are far from interchangeable."""
    dtype = torch.float32
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as vllm_config:
        tower = load_model(vllm_config).visual
        tower.blocks[2] = tower.blocks[0]
        swapped = run(tower, dtype)
    for name, expected in stock(dtype).items():
        assert rms_ratio(swapped[name], expected) > 100 * allowance(
            reference=expected, truth=expected
        )


def test_off_by_default_and_then_exactly_stock(
    qwen2_5_vl: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    with tower_context(qwen2_5_vl) as vllm_config:
        model = load_model(vllm_config)
        assert type(model) is CompiledQwen2_5_VLForConditionalGeneration
        assert not {type(m) for m in model.modules()} & set(CLASSES.values())
        with counters.expect(structures=0, graphs=0):
            ours = run(model.visual, torch.float32)
    for name, expected in stock(torch.float32).items():
        assert torch.equal(ours[name], expected), name


def test_names_and_parameters_are_those_of_stock(qwen2_5_vl: Path) -> None:
    def names(model: nn.Module) -> tuple[list[str], list[Any]]:
        modules = [name for name, _ in model.named_modules()]
        return modules, [(n, tuple(p.shape)) for n, p in model.named_parameters()]

    with tower_context(qwen2_5_vl, **stock_class(ARCHITECTURE)) as vllm_config:
        expected = names(load_model(vllm_config))
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        assert names(model) == expected
        assert vllm_config.compilation_config.compile_mm_encoder
        assert model.get_mm_mapping().tower_model == ["visual."]


def test_speculative_decoding_finds_the_image_token(qwen2_5_vl: Path) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    with tower_context(qwen2_5_vl, speculative_config=ngram) as vllm_config:
        config = load_model(vllm_config).config
        assert config.image_token_index == config.image_token_id


def test_item_alone_equals_item_in_a_batch(qwen2_5_vl: Path) -> None:
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as vllm_config:
        tower = load_model(vllm_config).visual
        grids = [[1, 16, 16], [2, 6, 10], [1, 2, 2], [1, 16, 16]]
        pixels = [patches([grid], torch.float32) + i for i, grid in enumerate(grids)]
        with torch.inference_mode():
            together = tower(torch.cat(pixels), grids)
            alone = [tower(x, [g]) for x, g in zip(pixels, grids, strict=True)]
    parts = together.split([x.shape[0] // 4 for x in pixels])
    for index, (part, expected) in enumerate(zip(parts, alone, strict=True)):
        # Products of another height add up in another order.
        assert_close(f"item {index}", part, expected, ratio=1e-5)


@pytest.mark.slow  # three ranges of each region; tests/compile/test_shapes.py has one
def test_no_request_compiles(qwen2_5_vl: Path) -> None:
    """After the warm-up, which a model does before its first forward."""
    rng = random.Random(0)
    settings = {"compile_ranges": [[4, 64]], "compile_sizes": [256]}
    with tower_context(
        qwen2_5_vl,
        compile_mm_encoder=True,
        additional_config={"vllm_mmc": settings},
    ) as vllm_config:
        model = load_model(vllm_config)
        assert model.visual.encoder_shapes.limit == 2048 * 4
        with counters.expect(structures=3, followers=3, recompiles=0, fallbacks=0):
            model.warm_up_encoder()
        with torch.inference_mode(), counters.expect(graphs=0, artifact_loads=0):
            for _ in range(200):
                grids = [
                    [1, 2 * rng.randint(1, 6), 2 * rng.randint(1, 6)]
                    for _ in range(rng.randint(1, 3))
                ]
                model.visual(patches(grids, torch.float32), grids)
            model.visual(patches([[1, 16, 16]], torch.float32), [[1, 16, 16]])


def test_sizes_that_never_come_are_refused(qwen2_5_vl: Path) -> None:
    settings = {"compile_sizes": [8196]}
    with (
        tower_context(
            qwen2_5_vl,
            compile_mm_encoder=True,
            additional_config={"vllm_mmc": settings},
        ) as vllm_config,
        pytest.raises(ValueError, match="multiples of 4 packed tokens up to 8192"),
    ):
        load_model(vllm_config)


def test_encoder_cuda_graph_protocol(qwen2_5_vl: Path) -> None:
    """The buffers of a capture, padded to its budget, give the same embeddings."""
    grid = [[1, 8, 8], [1, 4, 6]]
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        pixels = patches(grid, torch.float32)
        inputs = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grid)}
        with torch.inference_mode():
            expected = model.encoder_eager_forward(inputs)
            buffers = model.prepare_encoder_cudagraph_replay_buffers(
                inputs, max_batch_size=6, max_frames_per_batch=6
            )
            values = dict(buffers.values)
            assert len(values["cu_seqlens"]) == 7, "padded with empty sequences"
            with counters.expect(recompiles=0):
                actual = model.encoder_cudagraph_forward(values)
    assert torch.equal(actual, expected)


@pytest.mark.forked
def test_encoder_alone_as_documented(qwen2_5_vl: Path) -> None:
    """As examples/custom_serving.py builds it, which is on docs/custom-serving.md."""
    file = Path(__file__).parents[2] / "examples" / "custom_serving.py"
    example = runpy.run_path(str(file))
    grids = [[1, 16, 24], [1, 8, 8]]
    pixels = patches(grids, torch.float32)
    with counters.expect(structures=3, followers=3, recompiles=0):
        encoder = example["build"](str(qwen2_5_vl))
        metadata = encoder.prepare_encoder_metadata(grids)
        with torch.inference_mode():
            embeddings = encoder(pixels, None, encoder_metadata=metadata)
    assert metadata["max_seqlen_full"].device.type == "cpu"
    hf = FAMILIES["qwen2_5_vl"].hf_encoders["image"](qwen2_5_vl)
    with torch.inference_mode():
        expected = hf(pixels, torch.tensor(grids)).pooler_output
    assert_close("embeddings", embeddings, expected, ratio=2e-5)
