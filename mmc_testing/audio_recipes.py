# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models that hear."""

from typing import Any

from mmc_testing.writer import (
    ATTENTION,
    LLAMA_TOKENS,
    VISION_HIDDEN,
    Ids,
    Recipe,
    text_sizes,
    vision_sizes,
)


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


def _granite_speech_config(ids: Ids) -> Any:
    from transformers import GraniteSpeechConfig

    return GraniteSpeechConfig(
        text_config={"model_type": "granite", **text_sizes()},
        encoder_config={
            "input_dim": 160,
            "num_layers": 4,
            "hidden_dim": VISION_HIDDEN,
            "num_heads": 4,
            "dim_head": 16,
            "context_size": 20,
            "max_pos_emb": 64,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "encoder_hidden_size": VISION_HIDDEN,
            "vocab_size": 1,
            **vision_sizes(num_hidden_layers=2),
        },
        audio_token_index=ids["<|audio|>"],
        has_lora_adapter=False,
        tie_word_embeddings=False,
    )


RECIPES: dict[str, Recipe] = {
    "granite_speech": Recipe(
        "Granite Speech",
        "GraniteSpeechForConditionalGeneration",
        config=_granite_speech_config,
        special_tokens=(*LLAMA_TOKENS, "<|audio|>"),
        template="<s>USER: {media}{text}\n ASSISTANT:",
        placeholder="<|audio|>",
        settings={
            "processor_config.json": {"processor_class": "GraniteSpeechProcessor"},
            "preprocessor_config.json": {
                "feature_extractor_type": "GraniteSpeechFeatureExtractor",
                "processor_class": "GraniteSpeechProcessor",
            },
        },
        modality="audio",
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="can you transcribe the speech into a written format?",
        engine_args={"limit_mm_per_prompt": {"audio": {"count": 1, "length": 480000}}},
        renames={r"model\.model\.": "model."},
        packages=("torchaudio",),
    ),
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
