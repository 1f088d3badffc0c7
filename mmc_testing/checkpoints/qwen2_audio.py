# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2-Audio checkpoint: two text layers, 128 mel bins."""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    QWEN_ASSISTANT,
    qwen_sizes,
    speech_processor,
    whisper_sizes,
)
from mmc_testing.hf_encoders import HuggingFaceEncoder
from mmc_testing.writer import QWEN_TOKENS, Ids, Recipe


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers.models.qwen2_audio import Qwen2AudioConfig

    return Qwen2AudioConfig(
        audio_config=whisper_sizes(depth),
        text_config=qwen_sizes(
            ids,
            num_key_value_heads=4,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        ),
        audio_token_index=ids["<|AUDIO|>"],
    )


def _sharded_inputs() -> dict[str, Any]:
    frames = torch.tensor([230, 50, 900])
    return {
        "input_features": torch.randn(3, 128, 3000),
        "feature_attention_mask": (torch.arange(3000) < frames[:, None]).long(),
    }


RECIPES = {
    "qwen2_audio": Recipe(
        "Qwen2-Audio",
        "Qwen2AudioForConditionalGeneration",
        **QWEN_ASSISTANT | {"max_tokens": 8192},
        config=_config,
        least_depth=1,
        special_tokens=(*QWEN_TOKENS, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        processor=speech_processor("Qwen2AudioProcessor"),
        placeholder="Audio {i}: <|audio_bos|><|AUDIO|><|audio_eos|>\n",
        chat_template="",  # the processor has its own, which is the published one
        renames={r"model\.model\.": "model."},
        sinusoids=r"audio_tower\.embed_positions",
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        text="What is said?",
        engine_args={"limit_mm_per_prompt": {"audio": 2}},
        # Without the projector: encoder([items, 128, 3000], attention_mask=[items, 1,
        # 1500, 1500], to be added).last_hidden_state: [items, 750, hidden]
        hf_encoders={
            "audio": HuggingFaceEncoder(
                "transformers.models.qwen2_audio.modeling_qwen2_audio:"
                "Qwen2AudioEncoder",
                prefix="audio_tower.",
                config=("audio_config",),
            )
        },
        sharded_inputs=_sharded_inputs,
        serves="chat",
    )
}
