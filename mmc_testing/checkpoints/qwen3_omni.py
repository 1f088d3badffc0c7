# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen3-Omni checkpoint: the thinker, no talker.

Both text layers have four experts. Vision blocks 1 and, from depth 4 on, 3 are also
given to the text layers (deepstack).
"""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    QWEN,
    omni,
    omni_processor,
    omni_thinker,
    qwen_sizes,
    whisper_sizes,
)
from mmc_testing.checkpoints.qwen3_asr import SAMPLES
from mmc_testing.hf_encoders import HuggingFaceEncoder
from mmc_testing.writer import QWEN_TOKENS, Ids, Recipe, published, tokens
from vllm_mmc.demo.writer import HIDDEN, qwen_vision_sizes

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = QWEN_TOKENS + tokens(
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod> "
    "<|audio_pad|>"
)
NAMED = tokens(
    "<|image_pad|> <|audio_pad|> <|video_pad|> <|vision_start|> <|vision_end|> "
    "<|audio_start|> <|audio_end|>"
)
THINKER = "Qwen3OmniMoeThinkerForConditionalGeneration"


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen3OmniMoeConfig

    audio = {"conv_chunksize": 500, "downsample_hidden_size": 16, "dtype": dtype}
    return Qwen3OmniMoeConfig(
        thinker_config=omni_thinker(
            ids,
            NAMED,
            "id",
            audio_config=whisper_sizes(
                depth, n_window=50, n_window_infer=800, output_dim=HIDDEN, **audio
            ),
            text_config=_text_config(ids, dtype),
            vision_config=_vision_config(depth, dtype),
            position_id_per_seconds=13,
            dtype=dtype,
        ),
        enable_audio_output=False,
        im_start_token_id=ids["<|im_start|>"],
        im_end_token_id=ids["<|im_end|>"],
        tts_pad_token_id=ids["<tts_pad>"],
        tts_bos_token_id=ids["<tts_text_bos>"],
        tts_eos_token_id=ids["<tts_text_eod>"],
    )


def _text_config(ids: Ids, dtype: torch.dtype) -> dict[str, Any]:
    return qwen_sizes(
        ids,
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
        dtype=dtype,
    )


def _vision_config(depth: int, dtype: torch.dtype) -> dict[str, Any]:
    return qwen_vision_sizes(
        depth,
        patch_size=16,
        image_size=16 * 16,
        num_position_embeddings=16**2,  # a grid
        apply_vit_abs_pos_embed=True,
        deepstack_visual_indexes=[i for i in (1, 3) if i < depth],
        dtype=dtype,
    )


def _processor(tokenizer: Any) -> Any:
    half = [0.5, 0.5, 0.5]
    pixels = {"image_mean": half, "image_std": half}
    return omni_processor(tokenizer, "Qwen3OmniMoeProcessor", 32, **pixels)


QWEN3_OMNI = Recipe(
    "Qwen3-Omni",
    "Qwen3OmniMoeForConditionalGeneration",
    **QWEN,
    # Of two layers at least: with one there would be no vision block for deepstack.
    **omni(THINKER, NAMED),
    config=_config,
    special_tokens=SPECIAL_TOKENS,
    processor=_processor,
    placeholder={
        "audio": "<|audio_start|><|audio_pad|><|audio_end|>",
        "image": "<|vision_start|><|image_pad|><|vision_end|>",
    },
    # That of Qwen/Qwen3-Omni-30B-A3B-Instruct, without its tools.
    chat_template=published("qwen3_omni.jinja"),
    scales={r"^thinker\.model\..*q_norm\.weight$": 2},
    samples=SAMPLES,
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
)
RECIPES = {"qwen3_omni": QWEN3_OMNI}
