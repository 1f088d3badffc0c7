# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2.5-Omni checkpoint: the thinker, no talker.

Every second vision block, starting with the second, attends fully; the others attend
within windows of 112 pixels.
"""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    HIDDEN,
    BothPreprocessors,
    HuggingFaceEncoder,
    text_sizes,
    whisper_sizes,
)
from mmc_testing.writer import (
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    VISION_HIDDEN,
    Ids,
    Recipe,
    Shapes,
    prefixed,
    published_shapes,
)
from vllm_mmc.demo.writer import QWEN_GENERATION, QWEN_SYSTEM, qwen_tokenizer

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = (
    *QWEN_TOKENS,
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)

# As published with Qwen/Qwen2.5-Omni-7B.
CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}"
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
    "<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content"
    " or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5OmniConfig

    return Qwen2_5OmniConfig(
        thinker_config={
            "audio_config": whisper_sizes(
                depth, n_window=100, output_dim=HIDDEN, dtype=dtype
            ),
            "text_config": _text_config(ids, dtype),
            "vision_config": _vision_config(depth, dtype),
            "audio_token_index": ids["<|AUDIO|>"],
            "audio_start_token_id": ids["<|audio_bos|>"],
            "audio_end_token_id": ids["<|audio_eos|>"],
            "image_token_index": ids["<|IMAGE|>"],
            "video_token_index": ids["<|VIDEO|>"],
            "vision_start_token_id": ids["<|vision_bos|>"],
            "vision_end_token_id": ids["<|vision_eos|>"],
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "dtype": dtype,
        },
        enable_audio_output=False,
    )


def _text_config(ids: Ids, dtype: torch.dtype) -> dict[str, Any]:
    return text_sizes(
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        # Rotary pairs for time, height, width: head size 32, so 16 pairs.
        rope_scaling={"rope_type": "default", "mrope_section": [4, 6, 6]},
        tie_word_embeddings=False,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
        dtype=dtype,
    )


def _vision_config(depth: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "depth": depth,
        "hidden_size": VISION_HIDDEN,
        "num_heads": 4,
        "intermediate_size": 172,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 25,
        "window_size": 112,
        "fullatt_block_indexes": list(range(1, depth, 2)),
        "out_hidden_size": HIDDEN,
        "dtype": dtype,
    }


def _shapes(config: Any) -> Shapes:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    return prefixed("thinker.", published_shapes(Thinker, config.thinker_config))


def _processor(tokenizer: Any) -> Any:
    import transformers

    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 512 * 28 * 28}
    pixels |= {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    processor = transformers.Qwen2_5OmniProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**pixels),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=transformers.Qwen2VLVideoProcessor(
            **pixels, cap_pixels_per_frame=False
        ),
        # As published: up to 300 s, to which every clip is padded for its spectrogram.
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=128, chunk_length=300, return_attention_mask=True
        ),
        tokenizer=tokenizer,
    )
    return [processor, BothPreprocessors(processor)]


MODELING = "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni"
RECIPES = {
    "qwen2_5_omni": Recipe(
        "Qwen2.5-Omni",
        "Qwen2_5OmniModel",
        config=_config,
        least_depth=2,  # one vision block that attends fully, and one that does not
        special_tokens=SPECIAL_TOKENS,
        tokenizer=qwen_tokenizer,
        processor=_processor,
        template=QWEN_SYSTEM + QWEN_TEMPLATE,
        placeholder={
            "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
            "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        },
        chat_template=CHAT_TEMPLATE,
        roles=QWEN_ROLES,
        named_tokens={
            "image_token": "<|IMAGE|>",
            "audio_token": "<|AUDIO|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        },
        generation=QWEN_GENERATION,
        max_tokens=32768,
        hf_class="",
        shapes=_shapes,
        scales={r"^thinker\.model\..*self_attn\.[qk]_proj\.weight$": 2},
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        engine_args={"limit_mm_per_prompt": {"audio": 2, "image": 2, "video": 0}},
        # encoder([128, frames of all clips], feature_lens=frames of each)
        # .last_hidden_state: [tokens of all clips, hidden size of the text model];
        # encoder(pixel_values, grid_thw).pooler_output: [tokens, out_hidden_size]
        hf_encoders={
            "audio": HuggingFaceEncoder(
                f"{MODELING}:Qwen2_5OmniAudioEncoder",
                prefix="thinker.audio_tower.",
                config=("thinker_config", "audio_config"),
            ),
            "image": HuggingFaceEncoder(
                f"{MODELING}:Qwen2_5OmniVisionEncoder",
                prefix="thinker.visual.",
                config=("thinker_config", "vision_config"),
            ),
        },
        serves="chat",
    )
}
