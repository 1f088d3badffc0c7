# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Audio Flamingo 3 checkpoint: two text layers, 128 mel bins."""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    POSITIONS,
    QWEN_ASSISTANT,
    qwen_sizes,
    speech_processor,
)
from mmc_testing.hf_encoders import HuggingFaceEncoder
from mmc_testing.writer import QWEN_TOKENS, Ids, Recipe, published
from vllm_mmc.demo.writer import HIDDEN


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
        text_config=qwen_sizes(ids, rope_theta=1e6, tie_word_embeddings=False),
        audio_token_id=ids["<sound>"],
    )


RECIPES = {
    "audioflamingo3": Recipe(
        "Audio Flamingo 3",
        "AudioFlamingo3ForConditionalGeneration",
        **QWEN_ASSISTANT | {"max_tokens": 8192},
        config=_config,
        least_depth=1,
        special_tokens=(*QWEN_TOKENS, "<sound>"),
        processor=speech_processor("AudioFlamingo3Processor"),
        placeholder="<sound>",
        chat_template=published("audioflamingo3.jinja"),
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
