# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models that see: whose parameters transformers' classes have."""

from typing import Any

from mmc_testing.writer import (
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
    "qwen3_vl_moe": _qwen_vl(
        "Qwen3-VL MoE",
        "Qwen3VLMoe",
        "Qwen3VLProcessor",
        16,
        QWEN3_ROPE
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        QWEN3_VISION,
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
}
