# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Whisper checkpoint: two decoder layers, 80 mel bins."""

from typing import Any

import torch

from vllm_mmc.demo.writer import Ids, Recipe, byte_level_vocab

HIDDEN = 128  # four heads of 32, the smallest that attention on CPU takes
POSITIONS = 1500  # of 30 s of speech, as published


def _special_tokens() -> list[str]:
    """In the order in which Whisper numbers them."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in LANGUAGES),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{i * 0.02:.2f}|>" for i in range(POSITIONS + 1)),
    ]


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import WhisperConfig

    end = ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=len(ids),
        d_model=HIDDEN,
        encoder_layers=depth,
        encoder_attention_heads=4,
        encoder_ffn_dim=4 * HIDDEN,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=4 * HIDDEN,
        max_source_positions=POSITIONS,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _tokenizer(recipe: Recipe, ids: Ids) -> Any:
    from transformers import AddedToken, WhisperTokenizerFast

    special = _special_tokens()
    tokenizer = WhisperTokenizerFast(
        vocab={token: i for token, i in ids.items() if not token.startswith("<|")},
        merges=[],
        additional_special_tokens=special[1 : -POSITIONS - 1],
        model_max_length=recipe.max_tokens,
    )
    times = special[-POSITIONS - 1 :]
    tokenizer.add_tokens([AddedToken(token, special=False) for token in times])
    return tokenizer


def _processor(tokenizer: Any) -> Any:
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    return WhisperProcessor(WhisperFeatureExtractor(), tokenizer)


RECIPE = Recipe(
    "Whisper",
    "WhisperForConditionalGeneration",
    config=_config,
    least_depth=1,
    vocab=lambda: byte_level_vocab(_special_tokens()),
    tokenizer=_tokenizer,
    processor=_processor,
    # English, transcribe, no timestamps; the text is what the transcript begins with.
    template="<|startoftranscript|><|en|><|transcribe|><|notimestamps|>{text}",
    placeholder="",
    max_tokens=448,
    generation={
        **dict.fromkeys(("bos_token_id", "pad_token_id"), "<|endoftext|>"),
        "eos_token_id": "<|endoftext|>",
        "decoder_start_token_id": "<|startoftranscript|>",
    },
    sinusoids=r"encoder\.embed_positions",
    scales={
        r"encoder_attn\.[qk]_proj\.weight$": 4,
        # It is the output layer too: large rows would answer with the token before.
        "embed_tokens": 0.05,
    },
    modality="audio",
    samples=([0.3], [3.0], [12.5], [30.0]),
    text="",
    engine_args={"limit_mm_per_prompt": {"audio": 1}, "max_model_len": 448},
)
