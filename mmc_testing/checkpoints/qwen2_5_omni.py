# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2.5-Omni checkpoint: the thinker, no talker.

Every second vision block, starting with the second, attends fully; the others attend
within windows of 112 pixels.
"""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    QWEN_ASSISTANT,
    omni,
    omni_processor,
    omni_thinker,
    qwen_sizes,
    whisper_sizes,
)
from mmc_testing.hf_encoders import HuggingFaceEncoder
from mmc_testing.writer import QWEN_TOKENS, Ids, Recipe, published, tokens
from vllm_mmc.demo.writer import HIDDEN, qwen_vision_sizes

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = QWEN_TOKENS + tokens(
    "<|AUDIO|> <|audio_bos|> <|audio_eos|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<|vision_bos|> <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|>"
)
NAMED = tokens(
    "<|IMAGE|> <|AUDIO|> <|VIDEO|> <|vision_bos|> <|vision_eos|> <|audio_bos|> "
    "<|audio_eos|>"
)
THINKER = "Qwen2_5OmniThinkerForConditionalGeneration"


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5OmniConfig

    return Qwen2_5OmniConfig(
        thinker_config=omni_thinker(
            ids,
            NAMED,
            "index",
            audio_config=whisper_sizes(
                depth, n_window=100, output_dim=HIDDEN, dtype=dtype
            ),
            text_config=_text_config(ids, dtype),
            vision_config=_vision_config(depth, dtype),
            position_id_per_seconds=25,
            dtype=dtype,
        ),
        enable_audio_output=False,
    )


def _text_config(ids: Ids, dtype: torch.dtype) -> dict[str, Any]:
    return qwen_sizes(
        ids,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        # Rotary pairs for time, height, width: head size 32, so 16 pairs.
        rope_scaling={"rope_type": "default", "mrope_section": [4, 6, 6]},
        tie_word_embeddings=False,
        bos_token_id=ids["<|endoftext|>"],
        dtype=dtype,
    )


def _vision_config(depth: int, dtype: torch.dtype) -> dict[str, Any]:
    return qwen_vision_sizes(
        depth,
        patch_size=14,
        tokens_per_second=25,
        window_size=112,
        fullatt_block_indexes=list(range(1, depth, 2)),
        dtype=dtype,
    )


def _processor(tokenizer: Any) -> Any:
    return omni_processor(tokenizer, "Qwen2_5OmniProcessor", 28)


MODELING = "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni"
RECIPES = {
    "qwen2_5_omni": Recipe(
        "Qwen2.5-Omni",
        "Qwen2_5OmniModel",
        **QWEN_ASSISTANT,
        # Of two layers at least: a vision block that attends fully, and one that does
        # not.
        **omni(THINKER, NAMED),
        config=_config,
        special_tokens=SPECIAL_TOKENS,
        processor=_processor,
        placeholder={
            "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
            "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        },
        # As published with Qwen/Qwen2.5-Omni-7B.
        chat_template=published("qwen2_5_omni.jinja"),
        scales={r"^thinker\.model\..*self_attn\.[qk]_proj\.weight$": 2},
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
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
    )
}
