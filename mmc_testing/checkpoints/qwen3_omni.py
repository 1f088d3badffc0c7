# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen3-Omni checkpoint: the thinker, no talker.

Both text layers have four experts. Vision blocks 1 and, from depth 4 on, 3 are also
given to the text layers (deepstack).
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
from mmc_testing.checkpoints.qwen3_asr import SAMPLES
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
from vllm_mmc.demo.writer import QWEN_GENERATION, qwen_tokenizer

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = (
    *QWEN_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<|audio_pad|>",
)
PATCH = 16
LEARNED_GRID = 16  # the position embeddings of the vision encoder are 16 x 16

# That of Qwen/Qwen3-Omni-30B-A3B-Instruct, without its tools.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content"
    " or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'audio' or 'audio' in content"
    " or 'audio_url' in content %}"
    "<|audio_start|><|audio_pad|><|audio_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen3OmniMoeConfig

    audio = {"conv_chunksize": 500, "downsample_hidden_size": 16, "dtype": dtype}
    return Qwen3OmniMoeConfig(
        thinker_config={
            "audio_config": whisper_sizes(
                depth, n_window=50, n_window_infer=800, output_dim=HIDDEN, **audio
            ),
            "text_config": _text_config(ids, dtype),
            "vision_config": _vision_config(depth, dtype),
            "audio_token_id": ids["<|audio_pad|>"],
            "audio_start_token_id": ids["<|audio_start|>"],
            "audio_end_token_id": ids["<|audio_end|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "position_id_per_seconds": 13,
            "seconds_per_chunk": 2,
            "dtype": dtype,
        },
        enable_audio_output=False,
        im_start_token_id=ids["<|im_start|>"],
        im_end_token_id=ids["<|im_end|>"],
        tts_pad_token_id=ids["<tts_pad>"],
        tts_bos_token_id=ids["<tts_text_bos>"],
        tts_eos_token_id=ids["<tts_text_eod>"],
    )


def _text_config(ids: Ids, dtype: torch.dtype) -> dict[str, Any]:
    return text_sizes(
        moe_intermediate_size=HIDDEN,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        # Rotary pairs for time, height, width: head size 32, so 16 pairs.
        rope_scaling={
            "rope_type": "default",
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
            "interleaved": True,
        },
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
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "image_size": LEARNED_GRID * PATCH,
        "num_position_embeddings": LEARNED_GRID**2,
        "apply_vit_abs_pos_embed": True,
        "deepstack_visual_indexes": [i for i in (1, 3) if i < depth],
        "out_hidden_size": HIDDEN,
        "dtype": dtype,
    }


def _shapes(config: Any) -> Shapes:
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker

    return prefixed("thinker.", published_shapes(Thinker, config.thinker_config))


def _processor(tokenizer: Any) -> Any:
    import transformers

    pixels: dict[str, Any] = {
        "min_pixels": 4 * 32 * 32,
        "max_pixels": 512 * 32 * 32,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = transformers.Qwen3OmniMoeProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**pixels),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=transformers.Qwen2VLVideoProcessor(
            **pixels, cap_pixels_per_frame=False
        ),
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=128, chunk_length=300, return_attention_mask=True
        ),
        tokenizer=tokenizer,
    )
    return [processor, BothPreprocessors(processor)]


QWEN3_OMNI = Recipe(
    "Qwen3-Omni",
    "Qwen3OmniMoeForConditionalGeneration",
    config=_config,
    least_depth=2,  # there would be no vision block for deepstack
    special_tokens=SPECIAL_TOKENS,
    tokenizer=qwen_tokenizer,
    processor=_processor,
    template=QWEN_TEMPLATE,
    placeholder={
        "audio": "<|audio_start|><|audio_pad|><|audio_end|>",
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
    },
    chat_template=CHAT_TEMPLATE,
    roles=QWEN_ROLES,
    named_tokens={
        "image_token": "<|image_pad|>",
        "audio_token": "<|audio_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    },
    generation=QWEN_GENERATION,
    max_tokens=32768,
    hf_class="",
    shapes=_shapes,
    scales={r"^thinker\.model\..*q_norm\.weight$": 2},
    modality="audio",
    samples=SAMPLES,
    engine_args={"limit_mm_per_prompt": {"audio": 2, "image": 2, "video": 0}},
    # encoder([128, frames of all clips], feature_lens=frames of each)
    # .last_hidden_state: [tokens of all clips, hidden size of the text model]
    hf_encoders={
        "audio": HuggingFaceEncoder(
            "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe:"
            "Qwen3OmniMoeAudioEncoder",
            prefix="thinker.audio_tower.",
            config=("thinker_config", "audio_config"),
        )
    },
    serves="chat",
)
RECIPES = {"qwen3_omni": QWEN3_OMNI}
