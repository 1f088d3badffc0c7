# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The testing room itself: tiny checkpoints, pictures, tolerances, contexts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmc_testing.checkpoints import FAMILIES, Recipe
from mmc_testing.checkpoints.clef_omni import QUESTIONS, joint_schema
from mmc_testing.engine import load_model, stock_class, tower_context
from mmc_testing.hf_encoders import read_weights
from mmc_testing.parity import allowance, assert_close, rms_ratio
from vllm_mmc.demo import media

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
QWEN2_5_VL, LLAMA4 = FAMILIES["qwen2_5_vl"], FAMILIES["llama4"]
hf_vision_tower = QWEN2_5_VL.hf_encoders["image"]
DEPTH = 4
PATCH_VALUES = 3 * 2 * 14 * 14


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return QWEN2_5_VL.write(tmp_path_factory.mktemp("tiny"), depth=DEPTH)


def patches(grid: list[list[int]], seed: int = 0) -> torch.Tensor:
    """Pixel values as the processor lays them out: [patches, PATCH_VALUES]."""
    count = sum(t * h * w for t, h, w in grid)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, PATCH_VALUES, generator=generator)


# ---------------------------------------------------------------- checkpoints


every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def all_weights(path: Path) -> dict[str, torch.Tensor]:
    """Of a checkpoint whose weights may lie in several directories."""
    return {
        f"{file.relative_to(path).parent}/{name}": tensor
        for file in path.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@every_family
def test_same_seed_writes_the_same_bytes(family: Recipe, tmp_path: Path) -> None:
    def files(path: Path) -> dict[Path, bytes]:
        return {
            file.relative_to(path): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file()
        }

    first, again = (files(family.write(tmp_path / n, depth=2)) for n in "ab")
    assert first.keys() == again.keys()
    assert {".json", ".safetensors"} <= {file.suffix for file in first}
    for name, content in first.items():
        assert content == again[name], name


@every_family
def test_another_seed_changes_every_weight(family: Recipe, tmp_path: Path) -> None:
    weights, others = (
        all_weights(family.write(tmp_path / str(seed), depth=2, seed=seed))
        for seed in (0, 1)
    )
    assert weights.keys() == others.keys()
    same = {k for k in weights if torch.equal(weights[k], others[k])}
    # Sinusoids, as published.
    assert all(name.endswith("embed_positions.weight") for name in same)


@every_family
def test_deeper_checkpoint_keeps_the_shallow_layers(
    family: Recipe, tmp_path: Path
) -> None:
    weights, deeper = (
        all_weights(family.write(tmp_path / str(depth), depth=depth))
        for depth in (2, 4)
    )
    assert len(deeper) > len(weights)
    assert all(torch.equal(deeper[name], tensor) for name, tensor in weights.items())


def test_weights_have_the_published_names(checkpoint: Path) -> None:
    names = set(read_weights(checkpoint))
    # One of each kind, as in model.safetensors.index.json of Qwen/Qwen2.5-VL-7B.
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.norm.weight",
        "visual.blocks.0.attn.qkv.weight",
        "visual.blocks.0.mlp.gate_proj.bias",
        "visual.merger.ln_q.weight",
        "visual.merger.mlp.0.weight",
        "visual.patch_embed.proj.weight",
    } <= names
    roots = ("lm_head.", "model.embed_tokens.", "model.layers.", "model.norm.")
    assert all(name.startswith(("visual.", *roots)) for name in names)


def test_llama4_weights_have_the_published_names(tmp_path: Path) -> None:
    weights = read_weights(LLAMA4.write(tmp_path, depth=1))
    # One of each kind, as in meta-llama/Llama-4-Scout-17B-16E-Instruct.
    assert {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.1.feed_forward.experts.down_proj",
        "language_model.model.layers.1.feed_forward.experts.gate_up_proj",
        "language_model.model.layers.1.feed_forward.router.weight",
        "language_model.model.layers.1.feed_forward.shared_expert.up_proj.weight",
        "language_model.model.norm.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_model.class_embedding",
        "vision_model.layernorm_pre.bias",
        "vision_model.model.layers.0.self_attn.q_proj.bias",
        "vision_model.patch_embedding.linear.weight",
        "vision_model.positional_embedding_vlm",
        "vision_model.vision_adapter.mlp.fc1.weight",
    } <= set(weights)


def test_llama4_processor_agrees_with_the_config(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoProcessor

    path = LLAMA4.write(tmp_path, depth=1)
    config = AutoConfig.from_pretrained(path)
    processor = AutoProcessor.from_pretrained(path)
    assert type(processor).__name__ == "Llama4Processor"
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Who?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert prompt == LLAMA4.prompt("Who?", images=2)
    pictures = [media.photograph_at(112, 56), media.photograph_at(300, 200)]
    inputs = processor(text=[prompt], images=pictures, return_tensors="pt")
    # One tile; two by two, and the whole picture.
    assert inputs["pixel_values"].shape == (1 + 5, 3, 112, 112)
    assert (inputs["input_ids"] == config.image_token_index).sum() == 6 * 16


def test_llama4_depth_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depth must be at least 1"):
        LLAMA4.write(tmp_path, depth=0)


def test_clef_omni_schema_says_where_the_words_are(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    family = FAMILIES["clef_omni"]
    tokenizer = AutoTokenizer.from_pretrained(family.write(tmp_path, depth=2))
    prompt = tokenizer(family.request([1.0])["prompt"]).input_ids
    schema = joint_schema()
    spans = schema["question_spans"] + schema["option_spans"]
    questions = [question for _, question, _ in QUESTIONS]
    options = [words for *_, options in QUESTIONS for words in options]
    found = [tokenizer.decode(prompt[start:end]) for start, end in spans]
    assert found == questions + options


def test_depth_that_cannot_hold_both_kinds_of_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depth must be at least 2"):
        QWEN2_5_VL.write(tmp_path, depth=1)


def test_processor_and_tokenizer_agree_with_the_config(checkpoint: Path) -> None:
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    text = "Grüße, 世界 <|im_end|>"
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(ids) == text
    assert ids[-1] == config.text_config.eos_token_id
    assert processor.image_token_id == config.image_token_id
    assert processor.video_token_id == config.video_token_id

    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Who?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert prompt == QWEN2_5_VL.prompt("Who?", images=2)
    pictures = [media.photograph_at(84, 56), media.photograph_at(56, 140)]
    inputs = processor(text=[prompt], images=pictures, return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 10, 4]]
    embeddings = (4 * 6 + 10 * 4) // 4
    assert (inputs["input_ids"] == config.image_token_id).sum() == embeddings


def test_hf_tower_refuses_a_missing_and_a_left_over_weight(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = QWEN2_5_VL.write(tmp_path, depth=2)
    hf_vision_tower(path)
    weights = read_weights(path)
    lost = weights.pop("visual.blocks.1.norm1.weight")
    save_file(weights, path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing.*blocks\.1\.norm1\.weight"):
        hf_vision_tower(path)
    weights["visual.blocks.1.norm1.weight"] = lost
    weights["visual.extra.weight"] = lost.clone()
    save_file(weights, path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"Unexpected.*extra\.weight"):
        hf_vision_tower(path)


def test_a_weight_of_the_wrong_block_shows(checkpoint: Path) -> None:
    grid = [[1, 16, 12]]
    tower = hf_vision_tower(checkpoint)
    reduced = hf_vision_tower(checkpoint, dtype=torch.bfloat16)
    pixels, thw = patches(grid), torch.tensor(grid)
    with torch.inference_mode():
        truth = tower(pixels, thw).pooler_output
        reference = reduced(pixels.bfloat16(), thw).pooler_output
    allowed = allowance(reference=reference, truth=truth)
    names = [name for name, _ in tower.blocks[0].named_parameters()]
    assert len(names) == 12
    for index in range(DEPTH):
        for name in names:
            here = tower.blocks[index].get_parameter(name)
            there = tower.blocks[(index + 1) % DEPTH].get_parameter(name)
            kept = here.clone()
            here.copy_(there)
            with torch.inference_mode():
                error = rms_ratio(tower(pixels, thw).pooler_output, truth)
            here.copy_(kept)
            assert error > allowed, f"blocks.{index}.{name}: {error:.3g}"


# ---------------------------------------------------------------- media


def test_photograph_at_any_size() -> None:
    picture = media.photograph_at(91, 203)
    assert (picture.size, picture.mode) == ((91, 203), "RGB")
    assert np.asarray(picture).std() > 20, "a picture, not one colour"


def test_video_frames_differ() -> None:
    frames = media.video(5, 70, 42)
    assert frames.dtype == np.uint8
    assert frames.shape == (5, 42, 70, 3)
    assert all((frames[i] != frames[i + 1]).any() for i in range(4))
    with pytest.raises(ValueError, match="num_frames"):
        media.video(0, 70, 42)


# ---------------------------------------------------------------- parity


def test_rms_ratio() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert rms_ratio(expected, expected) == 0
    assert rms_ratio(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert rms_ratio(torch.ones(2), torch.zeros(2)) == float("inf")
    assert rms_ratio(torch.zeros(2), torch.zeros(2)) == 0


def test_allowance_grows_with_the_error_of_the_reference() -> None:
    truth = torch.linspace(1, 2, 1000)
    near = allowance(reference=truth.bfloat16(), truth=truth)
    far = allowance(reference=(truth * 1.1).bfloat16(), truth=truth)
    assert 0.008 < near < 0.02
    assert far == pytest.approx(near + 0.2, abs=0.01)
    with pytest.raises(ValueError, match="float32"):
        allowance(reference=truth.bfloat16(), truth=truth.bfloat16())
    with pytest.raises(ValueError, match="shapes differ"):
        allowance(reference=truth[:-1], truth=truth)


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (torch.ones(3), torch.ones(4), r"x: shape \(3,\), expected \(4,\)"),
        (torch.ones(3).double(), torch.ones(3), "x: dtype torch.float64"),
        (torch.ones(0), torch.ones(0), "x: nothing to compare"),
        (torch.tensor([1, torch.nan]), torch.ones(2), "1 of 2 .* actual"),
        (torch.ones(2), torch.tensor([1, torch.inf]), "1 of 2 .* expected"),
        (torch.tensor([1, 1.1]), torch.ones(2), r"ratio 0\.0707 is above 0\.07 "),
    ],
)
def test_assert_close_refuses(
    actual: torch.Tensor, expected: torch.Tensor, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close("x", actual, expected, ratio=0.07)


def test_assert_close_accepts() -> None:
    error = assert_close("x", torch.tensor([1, 1.1]), torch.ones(2), ratio=0.08)
    assert error == pytest.approx(0.1 / 2**0.5)
    half = torch.ones(2, dtype=torch.bfloat16)
    assert assert_close("x", half, torch.ones(2), ratio=0, dtype=half.dtype) == 0


# ---------------------------------------------------------------- engine


def test_stock_tower_equals_hugging_face(checkpoint: Path) -> None:
    from vllm.config.vllm import get_current_vllm_config_or_none

    reference = hf_vision_tower(checkpoint)
    with (
        tower_context(checkpoint, **stock_class(ARCHITECTURE)) as vllm_config,
        torch.inference_mode(),
    ):
        model = load_model(vllm_config)
        assert type(model).__module__ == "vllm.model_executor.models.qwen2_5_vl"
        # One image that fills its windows, then odd sizes packed with a video.
        for grid in ([[1, 16, 16]], [[1, 6, 10], [1, 18, 22], [2, 8, 12]]):
            pixels = patches(grid)
            actual = model.visual(pixels, grid_thw=grid)
            expected = reference(pixels, torch.tensor(grid)).pooler_output
            assert_close(f"visual {grid}", actual, expected, ratio=2e-5)
        with (
            pytest.raises(RuntimeError, match="already runs"),
            tower_context(checkpoint),
        ):
            pass
    assert not torch.distributed.is_initialized()
    assert get_current_vllm_config_or_none() is None
