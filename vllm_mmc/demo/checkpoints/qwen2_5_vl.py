# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2.5-VL checkpoint.

Every second vision block, starting with the second, attends fully; the others attend
within windows of 112 pixels.
"""

from typing import Any

import torch

from vllm_mmc.demo.writer import (
    QWEN_GENERATION,
    QWEN_ROLES,
    QWEN_SYSTEM,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    Ids,
    Recipe,
    qwen_vision_sizes,
    text_sizes,
)

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = (
    *QWEN_TOKENS,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH_SIZE = 14

# As published with Qwen/Qwen2.5-VL-7B-Instruct.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content"
    " or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config=text_sizes(
            rms_norm_eps=1e-6,
            rope_theta=1_000_000.0,
            # Rotary pairs for time, height, width: head size 32, so 16 pairs.
            rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]},
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            dtype=dtype,
        ),
        vision_config=qwen_vision_sizes(
            depth,
            patch_size=PATCH_SIZE,
            tokens_per_second=2,
            window_size=112,
            fullatt_block_indexes=list(range(1, depth, 2)),
            dtype=dtype,
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _tokenizer(recipe: Recipe, ids: Ids) -> Any:
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(
        vocab=dict(ids),
        merges=[],
        **recipe.roles,
        extra_special_tokens=list(recipe.special_tokens),
        chat_template=recipe.chat_template,
        model_max_length=recipe.max_tokens,
    )


def _processor(tokenizer: Any, max_pixels: int) -> Any:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    sizes = {"min_pixels": 4 * 28 * 28, "max_pixels": max_pixels}
    patches = {"patch_size": PATCH_SIZE, "temporal_patch_size": 2, "merge_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, **patches),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=Qwen2VLVideoProcessor(
            **sizes, **patches, cap_pixels_per_frame=False
        ),
        tokenizer=tokenizer,
    )


def recipe(max_pixels: int = 512 * 28 * 28) -> Recipe:
    """Returns the recipe.

    Args:
        max_pixels: the image processor scales larger images down to this area; one
            embedding is 28 x 28 pixels. The published value is 16384 * 28 * 28.
    """
    return Recipe(
        "Qwen2.5-VL",
        "Qwen2_5_VLForConditionalGeneration",
        config=_config,
        least_depth=2,  # one block that attends fully, and one that does not
        special_tokens=SPECIAL_TOKENS,
        tokenizer=_tokenizer,
        processor=lambda tokenizer: _processor(tokenizer, max_pixels),
        chat_template=CHAT_TEMPLATE,
        template=QWEN_SYSTEM + QWEN_TEMPLATE,
        placeholder={
            "image": "<|vision_start|><|image_pad|><|vision_end|>",
            "video": "<|vision_start|><|video_pad|><|vision_end|>",
        },
        roles=QWEN_ROLES,
        generation={"bos_token_id": "<|endoftext|>", **QWEN_GENERATION},
        max_tokens=32768,
        # No video: vLLM would profile the encoder with two of the largest, 10 s each
        # start.
        engine_args={"limit_mm_per_prompt": {"image": 2, "video": 0}},
    )


RECIPE = recipe()
