# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models that hear."""

from typing import Any

from mmc_testing.writer import ATTENTION, Ids, Recipe, text_sizes, vision_sizes


def _glmasr_config(ids: Ids) -> Any:
    from transformers import GlmAsrConfig

    return GlmAsrConfig(
        # Four states become one embedding, so the inner size is four times the outer.
        audio_config=vision_sizes(intermediate_size=256),
        text_config=text_sizes(
            pad_token_id=ids["<|endoftext|>"],
            bos_token_id=None,
            eos_token_id=[ids["<|endoftext|>"], ids["<|user|>"]],
        ),
        audio_token_id=ids["<|pad|>"],
        tie_word_embeddings=False,
    )


def _glmasr_processor(tokenizer: Any) -> Any:
    from transformers import GlmAsrProcessor, WhisperFeatureExtractor

    return GlmAsrProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)


RECIPES: dict[str, Recipe] = {
    "glmasr": Recipe(
        "GLM-ASR",
        "GlmAsrForConditionalGeneration",
        config=_glmasr_config,
        special_tokens=(
            "<|endoftext|>",
            "<|user|>",
            "<|assistant|>",
            "<|begin_of_audio|>",
            "<|end_of_audio|>",
            "<|pad|>",
        ),
        processor=_glmasr_processor,
        template="<|user|>\n{media}<|user|>\n{text}<|assistant|>\n",
        placeholder="<|begin_of_audio|><|pad|><|end_of_audio|>",
        # Else the sound hardly changes what comes out.
        scales={ATTENTION: 2, r"audio_tower\.conv1\.weight$": 8},
        renames={r"model\.model\.": "model."},
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        modality="audio",
        # One clip: transformers' processor wants a prompt of its own for each.
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="Please transcribe this audio into text",
        engine_args={"limit_mm_per_prompt": {"audio": {"count": 1, "length": 480000}}},
    ),
}
