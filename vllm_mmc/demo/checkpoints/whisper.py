# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Whisper checkpoint."""

from pathlib import Path
from typing import Any

import torch

from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    random_weights,
    save_checkpoint,
)

HIDDEN = 128  # four heads of 32, the smallest that attention on CPU takes
POSITIONS = 1500  # of 30 s of speech, as published


def special_tokens() -> list[str]:
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


def tiny_whisper(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny Whisper checkpoint directory: two decoder layers, 80 mel bins.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: encoder layers, at least 1.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 1.
    """
    from transformers import GenerationConfig, WhisperForConditionalGeneration
    from transformers.models.whisper.modeling_whisper import sinusoids

    check_depth(depth)
    vocab = byte_level_vocab(special_tokens())
    config = _config(vocab, depth, dtype)
    shapes = parameter_shapes(WhisperForConditionalGeneration, config, renames={})
    del shapes["proj_out.weight"]  # published as model.decoder.embed_tokens only
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    weights["model.encoder.embed_positions.weight"] = sinusoids(POSITIONS, HIDDEN).to(
        dtype
    )
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.endswith(("encoder_attn.q_proj.weight", "encoder_attn.k_proj.weight")):
            tensor *= 4
    # It is the output layer too: large rows would answer with the token before.
    embed_tokens = weights["model.decoder.embed_tokens.weight"]
    embed_tokens *= 0.05
    answer_in_visible_characters(embed_tokens, vocab)

    generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )
    processor = _processor(vocab)
    return save_checkpoint(
        path,
        parts=[config, generation_config, processor, processor.feature_extractor],
        weights=weights,
    )


def whisper_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns what the decoder is begun with: English, transcribe, no timestamps.

    Args:
        text: what the transcript begins with.
        audios: Whisper hears one at a time.
    """
    if audios != 1:
        raise ValueError(f"audios must be 1, got {audios}")
    return f"<|startoftranscript|><|en|><|transcribe|><|notimestamps|>{text}"


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from transformers import WhisperConfig

    end = vocab["<|endoftext|>"]
    return WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=len(vocab),
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
        decoder_start_token_id=vocab["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
        dtype=dtype,
    )


def _processor(vocab: dict[str, int]) -> Any:
    from transformers import (
        AddedToken,
        WhisperFeatureExtractor,
        WhisperProcessor,
        WhisperTokenizerFast,
    )

    plain = {token: i for token, i in vocab.items() if not token.startswith("<|")}
    tokenizer = WhisperTokenizerFast(
        vocab=plain,
        merges=[],
        additional_special_tokens=special_tokens()[1 : -POSITIONS - 1],
        model_max_length=448,
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False)
            for token in special_tokens()[-POSITIONS - 1 :]
        ]
    )
    return WhisperProcessor(WhisperFeatureExtractor(), tokenizer)
