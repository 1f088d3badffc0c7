# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2-Audio checkpoint, and Hugging Face's encoder with its weights."""

from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import hf_encoder, read_weights
from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    qwen_generation_config,
    random_weights,
    save_checkpoint,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model; also the width of the audio embeddings
AUDIO_HIDDEN = 128  # heads of 32, as in the text model
POSITIONS = 1500  # of 30 s of speech, as published

# Hugging Face's prefixes -> those of Qwen/Qwen2-Audio-7B-Instruct.
PUBLISHED_PREFIXES = {
    "model.audio_tower.": "audio_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def tiny_qwen2_audio(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny Qwen2-Audio checkpoint directory: two text layers, 128 mel bins.

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
    from transformers.models.qwen2_audio import Qwen2AudioForConditionalGeneration
    from transformers.models.whisper.modeling_whisper import sinusoids

    check_depth(depth)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(vocab, depth, dtype)
    shapes = parameter_shapes(
        Qwen2AudioForConditionalGeneration, config, renames=PUBLISHED_PREFIXES
    )
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    weights["audio_tower.embed_positions.weight"] = sinusoids(
        POSITIONS, AUDIO_HIDDEN
    ).to(dtype)
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.startswith("language_model.") and name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
            tensor *= 2
    answer_in_visible_characters(weights["language_model.lm_head.weight"], vocab)

    generation_config = qwen_generation_config(vocab)
    processor = _processor(vocab)
    return save_checkpoint(
        path,
        parts=[config, generation_config, processor, processor.feature_extractor],
        weights=weights,
    )


def qwen2_audio_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns what the chat template makes of one user turn: audios, then text.

    Args:
        text: the user's words.
        audios: audio placeholders.
    """
    placeholders = "".join(
        f"Audio {i + 1}: <|audio_bos|><|AUDIO|><|audio_eos|>\n" for i in range(audios)
    )
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{placeholders}{text}<|im_end|>\n<|im_start|>assistant\n"
    )


def load_hf_qwen2_audio_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen2-Audio encoder with these weights, no projector.

    Called with log-mel features [items, 128, 3000] and a mask to add to the attention
    [items, 1, 1500, 1500] it gives `.last_hidden_state` [items, 750, hidden].

    Args:
        path: a directory that `tiny_qwen2_audio` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.qwen2_audio import Qwen2AudioEncoder

    config = AutoConfig.from_pretrained(path).audio_config
    weights = read_weights(path, "audio_tower.")
    return hf_encoder(Qwen2AudioEncoder, config, weights, dtype)


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from transformers.models.qwen2_audio import Qwen2AudioConfig

    return Qwen2AudioConfig(
        architectures=["Qwen2AudioForConditionalGeneration"],
        audio_config={
            "num_mel_bins": 128,
            "encoder_layers": depth,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 4 * AUDIO_HIDDEN,
            "d_model": AUDIO_HIDDEN,
            "max_source_positions": POSITIONS,
        },
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "eos_token_id": vocab["<|im_end|>"],
            "pad_token_id": vocab["<|endoftext|>"],
        },
        audio_token_index=vocab["<|AUDIO|>"],
        dtype=dtype,
    )


def _processor(vocab: dict[str, int]) -> Any:
    from transformers import Qwen2Tokenizer, WhisperFeatureExtractor
    from transformers.models.qwen2_audio import Qwen2AudioProcessor

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    # Without a chat template it takes its own, which is the published one.
    return Qwen2AudioProcessor(
        feature_extractor=WhisperFeatureExtractor(
            feature_size=128, return_attention_mask=True
        ),
        tokenizer=tokenizer,
    )
