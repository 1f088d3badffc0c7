# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2.5-VL checkpoint."""

from pathlib import Path
from typing import Any

import torch

from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    qwen_generation_config,
    random_weights,
    save_checkpoint,
)

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
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
VOCAB_SIZE = 320  # the tokens, then unused rows, as in the published checkpoints

HIDDEN = 128  # of the text model; also the width of the image embeddings
VISION_HIDDEN = 64
PATCH = 14
SPATIAL_MERGE = 2

# Hugging Face's prefixes (transformers >= 4.52) -> those of Qwen/Qwen2.5-VL-*.
PUBLISHED_PREFIXES = {
    "model.visual.": "visual.",
    "model.language_model.": "model.",
}

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


def tiny_qwen2_5_vl(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_pixels: int = 512 * 28 * 28,
) -> Path:
    """Writes a tiny Qwen2.5-VL checkpoint directory.

    Every second vision block, starting with the second, attends fully; the others
    attend within windows of 112 pixels.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: vision transformer blocks, at least 2.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.
        max_pixels: the image processor scales larger images down to this area;
            one embedding is 28 x 28 pixels. The published value is 16384 * 28 * 28.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 2: windowed and full blocks could not both exist.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    check_depth(depth, least=2)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(vocab, depth, dtype)
    shapes = parameter_shapes(
        Qwen2_5_VLForConditionalGeneration, config, PUBLISHED_PREFIXES
    )
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    # Sharper text attention than random weights give, so that an answer depends on
    # the image.
    for name, tensor in weights.items():
        if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
            tensor *= 2
    answer_in_visible_characters(weights["lm_head.weight"], vocab)

    generation_config = qwen_generation_config(vocab)
    generation_config.bos_token_id = vocab["<|endoftext|>"]
    processor = _processor(vocab, max_pixels)
    return save_checkpoint(
        path,
        parts=[config, generation_config, processor, processor.image_processor],
        weights=weights,
    )


def qwen2_5_vl_prompt(text: str, *, images: int = 0, videos: int = 0) -> str:
    """Returns what the chat template makes of one user turn: media, then text.

    Args:
        text: the user's words.
        images: image placeholders, before the videos.
        videos: video placeholders.
    """
    media = "<|vision_start|><|image_pad|><|vision_end|>" * images
    media += "<|vision_start|><|video_pad|><|vision_end|>" * videos
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"
    )


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5_VLConfig

    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        # Rotary pairs for time, height, width: head size 32, so 16 pairs.
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "bos_token_id": vocab["<|endoftext|>"],
        "eos_token_id": vocab["<|im_end|>"],
        "dtype": dtype,
    }
    vision_config = {
        "depth": depth,
        "hidden_size": VISION_HIDDEN,
        "num_heads": 4,
        "intermediate_size": 172,
        "patch_size": PATCH,
        "spatial_merge_size": SPATIAL_MERGE,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(range(1, depth, 2)),
        "out_hidden_size": HIDDEN,
        "dtype": dtype,
    }
    return Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=vocab["<|image_pad|>"],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
        dtype=dtype,
    )


def _processor(vocab: dict[str, int], max_pixels: int) -> Any:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=32768,
    )
    sizes = {"min_pixels": 4 * 28 * 28, "max_pixels": max_pixels}
    patches = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": SPATIAL_MERGE,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, **patches),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=Qwen2VLVideoProcessor(
            **sizes, **patches, cap_pixels_per_frame=False
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
