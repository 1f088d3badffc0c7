# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models that see: whose parameters transformers' classes have."""

from dataclasses import replace
from typing import Any

from mmc_testing.writer import (
    ATTENTION,
    HIDDEN,
    LLAMA_TOKENS,
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    Ids,
    Recipe,
    text_sizes,
    vision_sizes,
)

NO_VIDEO = {"limit_mm_per_prompt": {"image": 2, "video": 0}}


# ---------------------------------------------------------------- LLaVA


def _llava_config(ids: Ids, tower: str) -> Any:
    from transformers import LlavaConfig

    clip = tower == "clip_vision_model"
    return LlavaConfig(
        vision_config={
            "model_type": tower,
            **vision_sizes(image_size=112, patch_size=14 if clip else 16),
            **({"projection_dim": 64} if clip else {"vision_use_head": False}),
        },
        text_config={"model_type": "llama", **text_sizes()},
        image_token_index=ids["<image>"],
        image_seq_length=64 if clip else 49,
        vision_feature_select_strategy="default" if clip else "full",
    )


def _llava_processor(tokenizer: Any, tower: str) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor, SiglipImageProcessor

    if tower == "clip_vision_model":
        return LlavaProcessor(
            CLIPImageProcessor(
                size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}
            ),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    return LlavaProcessor(
        SiglipImageProcessor(size={"height": 112, "width": 112}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
    )


def _llava(title: str, tower: str) -> Recipe:
    return Recipe(
        title,
        "LlavaForConditionalGeneration",
        config=lambda ids: _llava_config(ids, tower),
        special_tokens=(*LLAMA_TOKENS, "<image>"),
        processor=lambda tokenizer: _llava_processor(tokenizer, tower),
        template="USER: {media}\n{text} ASSISTANT:",
        placeholder="<image>",
        renames={r"vision_tower\.(?!vision_model)": "vision_tower.vision_model."},
    )


# ---------------------------------------------------------------- Qwen

QWEN_VL_TOKENS = (
    *QWEN_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def _experts(config: Any) -> dict[str, tuple[int, ...]]:
    """Returns the experts' shapes as published, the other way round than transformers'.

    Its own table turns them only where the two shapes differ, and takes the wrong one.
    """
    text = config.text_config
    experts, inner = text.num_experts, text.moe_intermediate_size
    return {
        f"model.language_model.layers.{layer}.mlp.experts.{name}": shape
        for layer in range(text.num_hidden_layers)
        for name, shape in (
            ("gate_up_proj", (experts, HIDDEN, 2 * inner)),
            ("down_proj", (experts, inner, HIDDEN)),
        )
    }


def _qwen_vl_config(ids: Ids, name: str, text: Any, vision: Any) -> Any:
    import transformers

    return getattr(transformers, name)(
        text_config=text_sizes(bos_token_id=None, eos_token_id=ids["<|im_end|>"])
        | text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _qwen_vl_processor(tokenizer: Any, name: str, patch: int) -> Any:
    import transformers

    video_class = "Qwen3VLVideoProcessor" if "3" in name else "Qwen2VLVideoProcessor"
    unit = (2 * patch) ** 2
    size = {"shortest_edge": 4 * unit, "longest_edge": 512 * unit}
    patches = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    return getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(size=size, **patches),
        video_processor=getattr(transformers, video_class)(size=size, **patches),
        tokenizer=tokenizer,
    )


def _qwen_vl(
    title: str, family: str, processor: str, patch: int, text: Any, vision: Any
) -> Recipe:
    return Recipe(
        title,
        f"{family}ForConditionalGeneration",
        config=lambda ids: _qwen_vl_config(ids, f"{family}Config", text, vision),
        special_tokens=QWEN_VL_TOKENS,
        processor=lambda tokenizer: _qwen_vl_processor(tokenizer, processor, patch),
        template=QWEN_TEMPLATE,
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        roles=QWEN_ROLES,
        tokenizer_class="Qwen2Tokenizer",
        engine_args=NO_VIDEO,
    )


QWEN3_VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_heads": 4,
    "patch_size": 16,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 144,
    "deepstack_visual_indexes": [1, 2],
}
QWEN3_ROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
}


# ---------------------------------------------------------------- Mistral 3


def _mistral3_config(ids: Ids) -> Any:
    from transformers import Mistral3Config

    return Mistral3Config(
        vision_config={
            "model_type": "pixtral",
            **vision_sizes(image_size=560, patch_size=14, head_dim=16),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        text_config={"model_type": "mistral", **text_sizes()},
        image_token_index=ids["[IMG]"],
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _mistral3_processor(tokenizer: Any) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    return PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 560}, patch_size=14),
        tokenizer,
        patch_size=14,
        spatial_merge_size=2,
    )


# ---------------------------------------------------------------- LLaVA-OneVision


def _onevision_config(ids: Ids) -> Any:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **vision_sizes(image_size=112, patch_size=14, vision_use_head=False),
        },
        text_config={"model_type": "qwen2", **text_sizes()},
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=ONEVISION_GRID,
        vision_aspect_ratio="anyres_max_9",
    )


ONEVISION_GRID = [[112 * row, 112 * column] for row in (1, 2) for column in (1, 2, 3)]


def _onevision_processor(tokenizer: Any) -> Any:
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    size = {"height": 112, "width": 112}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=ONEVISION_GRID),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


# ---------------------------------------------------------------- InternVL, Idefics 3


def _internvl_config(ids: Ids) -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            **vision_sizes(image_size=[112, 112], patch_size=[14, 14]),
            "attention_bias": True,
        },
        text_config={"model_type": "qwen2", **text_sizes()},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=16,
        tie_word_embeddings=False,
    )


def _internvl_processor(tokenizer: Any) -> Any:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    size = {"height": 112, "width": 112}
    return InternVLProcessor(
        GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=6
        ),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=16,
    )


def idefics3_config(ids: Ids, name: str = "Idefics3Config") -> Any:
    """Returns the config of Idefics3, or of a class with the same fields."""
    import transformers

    return getattr(transformers, name)(
        vision_config=vision_sizes(image_size=112, patch_size=14),
        text_config={"model_type": "llama", **text_sizes(pad_token_id=ids["<pad>"])},
        image_token_id=ids["<image>"],
        pad_token_id=ids["<pad>"],
        scale_factor=2,
    )


def _idefics3_processor(tokenizer: Any) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    return Idefics3Processor(
        Idefics3ImageProcessor(
            size={"longest_edge": 336}, max_image_size={"longest_edge": 112}
        ),
        tokenizer,
        image_seq_len=16,
    )


# ---------------------------------------------------------------- GLM

GLM_TOKENS = (
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|user|>",
    "<|assistant|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)


def _glm_config(ids: Ids, name: str) -> Any:
    import transformers

    return getattr(transformers, name)(
        text_config=text_sizes(
            pad_token_id=ids["<|endoftext|>"],
            eos_token_id=[ids["<|endoftext|>"], ids["<|user|>"]],
            # Half of a head of 32 turns: 8 pairs for time, height and width.
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3],
            },
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "image_size": 112,
            "patch_size": 14,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 172,
        },
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )


def _glm_processor(tokenizer: Any, family: str) -> Any:
    import transformers

    size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 512}
    images, videos, processor = (
        getattr(transformers, family + name)
        for name in ("ImageProcessor", "VideoProcessor", "Processor")
    )
    return processor(images(size=size), tokenizer, videos(size=size))


def _glm(title: str, family: str, processor: str) -> Recipe:
    return Recipe(
        title,
        f"{family}ForConditionalGeneration",
        config=lambda ids: _glm_config(ids, f"{family}Config"),
        special_tokens=GLM_TOKENS,
        processor=lambda tokenizer: _glm_processor(tokenizer, processor),
        template="[gMASK]<sop><|user|>\n{media}{text}<|assistant|>\n",
        placeholder="<|begin_of_image|><|image|><|end_of_image|>",
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        engine_args=NO_VIDEO,
    )


# ---------------------------------------------------------------- PaddleOCR


def _paddleocr_config(ids: Ids) -> Any:
    from transformers import PaddleOCRVLConfig

    return PaddleOCRVLConfig(
        text_config=text_sizes(
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 500000.0,
                "mrope_section": [4, 6, 6],
            }
        ),
        vision_config=vision_sizes(image_size=112, patch_size=14),
        image_token_id=ids["<|IMAGE_PLACEHOLDER|>"],
        video_token_id=ids["<|VIDEO_PLACEHOLDER|>"],
        vision_start_token_id=ids["<|IMAGE_START|>"],
        vision_end_token_id=ids["<|IMAGE_END|>"],
        tie_word_embeddings=False,
    )


def _paddleocr_processor(tokenizer: Any) -> Any:
    from transformers import PaddleOCRVLImageProcessor, PaddleOCRVLProcessor

    size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 512}
    return PaddleOCRVLProcessor(PaddleOCRVLImageProcessor(size=size), tokenizer)


# ---------------------------------------------------------------- all

RECIPES: dict[str, Recipe] = {
    "llava_clip": _llava("LLaVA (CLIP)", "clip_vision_model"),
    "llava_siglip": _llava("LLaVA (SigLIP)", "siglip_vision_model"),
    "qwen2_vl": _qwen_vl(
        "Qwen2-VL",
        "Qwen2VL",
        "Qwen2VLProcessor",
        14,
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],
            }
        },
        {"depth": 4, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 4},
    ),
    "qwen3_vl": _qwen_vl(
        "Qwen3-VL", "Qwen3VL", "Qwen3VLProcessor", 16, QWEN3_ROPE, QWEN3_VISION
    ),
    "qwen3_vl_moe": replace(
        _qwen_vl(
            "Qwen3-VL MoE",
            "Qwen3VLMoe",
            "Qwen3VLProcessor",
            16,
            QWEN3_ROPE
            | {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 96,
                "norm_topk_prob": True,
            },
            QWEN3_VISION,
        ),
        shapes=_experts,
        # Of three dimensions; the usual spread takes two of them for the fan-in.
        scales={ATTENTION: 2, r"experts\.\w+$": 11},
    ),
    "mistral3": Recipe(
        "Mistral 3 (Pixtral)",
        "Mistral3ForConditionalGeneration",
        config=_mistral3_config,
        special_tokens=(
            *LLAMA_TOKENS,
            "[INST]",
            "[/INST]",
            "[IMG]",
            "[IMG_BREAK]",
            "[IMG_END]",
        ),
        processor=_mistral3_processor,
        template="<s>[INST]{media}{text}[/INST]",
        placeholder="[IMG]",
    ),
    "llava_onevision": Recipe(
        "LLaVA-OneVision",
        "LlavaOnevisionForConditionalGeneration",
        config=_onevision_config,
        special_tokens=(*QWEN_TOKENS, "<image>", "<video>"),
        processor=_onevision_processor,
        template=QWEN_TEMPLATE,
        placeholder="<image>",
        roles=QWEN_ROLES,
        renames={r"vision_tower\.(?!vision_model)": "vision_tower.vision_model."},
        engine_args=NO_VIDEO | {"max_model_len": 4096},
    ),
    "internvl": Recipe(
        "InternVL 3",
        "InternVLForConditionalGeneration",
        config=_internvl_config,
        special_tokens=(*QWEN_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        processor=_internvl_processor,
        template=QWEN_TEMPLATE,
        placeholder="<IMG_CONTEXT>",
        roles=QWEN_ROLES,
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        engine_args=NO_VIDEO,
    ),
    "idefics3": Recipe(
        "Idefics 3",
        "Idefics3ForConditionalGeneration",
        config=idefics3_config,
        special_tokens=(
            *LLAMA_TOKENS,
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
        ),
        processor=_idefics3_processor,
        template="<s>User:{media}{text}<end_of_utterance>\nAssistant:",
        placeholder="<image>",
    ),
    "glm4_1v": _glm("GLM-4.1V", "Glm4v", "Glm4v"),
    "glm_ocr": _glm("GLM-OCR", "GlmOcr", "Glm46V"),
    "paddleocr_vl": Recipe(
        "PaddleOCR-VL",
        "PaddleOCRVLForConditionalGeneration",
        config=_paddleocr_config,
        special_tokens=(
            *LLAMA_TOKENS,
            "<|IMAGE_PLACEHOLDER|>",
            "<|VIDEO_PLACEHOLDER|>",
            "<|IMAGE_START|>",
            "<|IMAGE_END|>",
        ),
        processor=_paddleocr_processor,
        template="<s>User: {media}{text}\nAssistant: ",
        placeholder="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        named_tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    ),
}
