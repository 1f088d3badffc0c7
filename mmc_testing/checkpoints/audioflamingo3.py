# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Audio Flamingo 3 checkpoint: two text layers, 128 mel bins."""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    HIDDEN,
    POSITIONS,
    HuggingFaceEncoder,
    text_sizes,
)
from mmc_testing.writer import QWEN_ROLES, QWEN_TEMPLATE, QWEN_TOKENS, Ids, Recipe
from vllm_mmc.demo.writer import QWEN_GENERATION, QWEN_SYSTEM, qwen_tokenizer

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' %}<sound>{% endif %}{% endfor %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers.models.audioflamingo3 import AudioFlamingo3Config

    return AudioFlamingo3Config(
        audio_config={
            "num_mel_bins": 128,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "intermediate_size": 4 * HIDDEN,
            "hidden_size": HIDDEN,
            "max_source_positions": POSITIONS,
        },
        text_config=text_sizes(
            rope_theta=1e6,
            tie_word_embeddings=False,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        audio_token_id=ids["<sound>"],
    )


def _processor(tokenizer: Any) -> Any:
    from transformers import WhisperFeatureExtractor
    from transformers.models.audioflamingo3 import AudioFlamingo3Processor

    features = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    return AudioFlamingo3Processor(feature_extractor=features, tokenizer=tokenizer)


RECIPES = {
    "audioflamingo3": Recipe(
        "Audio Flamingo 3",
        "AudioFlamingo3ForConditionalGeneration",
        config=_config,
        least_depth=1,
        special_tokens=(*QWEN_TOKENS, "<sound>"),
        tokenizer=qwen_tokenizer,
        processor=_processor,
        template=QWEN_SYSTEM + QWEN_TEMPLATE,
        placeholder="<sound>",
        chat_template=CHAT_TEMPLATE,
        roles=QWEN_ROLES,
        generation=QWEN_GENERATION,
        renames={r"model\.model\.": "model."},
        sinusoids=r"audio_tower\.embed_positions",
        modality="audio",
        samples=([0.3], [3.0], [29.0], [45.0]),
        text="What is said?",
        # Without a length vLLM profiles with ten minutes.
        engine_args={
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": 30 * 16000}}
        },
        # Without the projector: encoder([windows, 128, 3000], mask [windows, 3000])
        # .last_hidden_state: [windows, 750, hidden]
        hf_encoders={
            "audio": HuggingFaceEncoder(
                "transformers.models.audioflamingo3.modeling_audioflamingo3:"
                "AudioFlamingo3Encoder",
                prefix="audio_tower.",
                config=("audio_config",),
            )
        },
        serves="chat",
    )
}
