# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen3-ASR checkpoint, and Hugging Face's encoder with its weights."""

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
    rename,
    save_checkpoint,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
    "<asr_text>",
    "<timestamp>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model; also the width of the audio embeddings
AUDIO_HIDDEN = 128  # heads of 32, as in the text model

# Hugging Face's prefixes -> those of Qwen/Qwen3-ASR-*.
PUBLISHED_PREFIXES = {
    "model.audio_tower.": "thinker.audio_tower.",
    "model.multi_modal_projector.linear_1.": "thinker.audio_tower.proj1.",
    "model.multi_modal_projector.linear_2.": "thinker.audio_tower.proj2.",
    "model.language_model.": "thinker.model.",
    "lm_head.": "thinker.lm_head.",
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}"
    "{% else %}<|audio_start|><|audio_pad|><|audio_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen3_asr(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny Qwen3-ASR checkpoint directory: two text layers, 128 mel bins.

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
    from transformers.models.qwen3_asr import (
        Qwen3ASRConfig,
        Qwen3ASRForConditionalGeneration,
    )
    from vllm.transformers_utils.configs.qwen3_asr import (
        Qwen3ASRConfig as PublishedConfig,
    )

    check_depth(depth)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    audio, text = _audio_config(depth), _text_config(vocab)
    config = Qwen3ASRConfig(audio_config=dict(audio), text_config=dict(text))
    shapes = parameter_shapes(
        Qwen3ASRForConditionalGeneration, config, renames=PUBLISHED_PREFIXES
    )
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.startswith("thinker.model.") and name.endswith("q_norm.weight"):
            tensor *= 2
    answer_in_visible_characters(weights["thinker.lm_head.weight"], vocab)

    generation_config = qwen_generation_config(vocab)
    published = PublishedConfig(
        architectures=["Qwen3ASRForConditionalGeneration"],
        thinker_config={
            "audio_config": audio,
            "text_config": text,
            "audio_token_id": vocab["<|audio_pad|>"],
            "audio_start_token_id": vocab["<|audio_start|>"],
            "audio_end_token_id": vocab["<|audio_end|>"],
            # For the forced aligner: the output layer tells one of so many times.
            "classify_num": VOCAB_SIZE,
            "dtype": dtype,
        },
        timestamp_token_id=vocab["<timestamp>"],
        timestamp_segment_time=80,
        dtype=dtype,
    )
    processor = _processor(vocab)
    return save_checkpoint(
        path,
        parts=[published, generation_config, processor, processor.feature_extractor],
        weights=weights,
    )


def qwen3_asr_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns what the chat template makes of one user turn: audios, then text.

    Args:
        text: the user's words.
        audios: audio placeholders.
    """
    placeholders = "<|audio_start|><|audio_pad|><|audio_end|>" * audios
    return f"<|im_start|>user\n{placeholders}{text}<|im_end|>\n<|im_start|>assistant\n"


def load_hf_qwen3_asr_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen3-ASR encoder and projector with these weights.

    Called with log-mel features [clips, 128, frames], frames a multiple of 100, and
    their mask [clips, frames], it gives [tokens, hidden size of the text model].

    Args:
        path: a directory that `tiny_qwen3_asr` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers.models.qwen3_asr import Qwen3ASRConfig
    from transformers.models.qwen3_asr.modeling_qwen3_asr import (
        Qwen3ASREncoder,
        Qwen3ASRMultiModalProjector,
    )
    from vllm.transformers_utils.configs.qwen3_asr import (
        Qwen3ASRConfig as PublishedConfig,
    )

    thinker = PublishedConfig.from_pretrained(path).thinker_config
    config = Qwen3ASRConfig(
        audio_config=_audio_config(thinker.audio_config.encoder_layers),
        text_config={"hidden_size": HIDDEN},
    )

    class Encoder(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.audio_tower = Qwen3ASREncoder(config.audio_config)
            self.multi_modal_projector = Qwen3ASRMultiModalProjector(config)

        def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.audio_tower(features, mask).last_hidden_state
            return self.multi_modal_projector(hidden)

    back = {new: old for old, new in PUBLISHED_PREFIXES.items() if "audio" in new}
    # The longest first: the projector's are inside of the tower's.
    back = dict(sorted(back.items(), key=lambda pair: -len(pair[0])))
    weights = {
        rename(name, back).removeprefix("model."): tensor
        for name, tensor in read_weights(path).items()
        if name.startswith("thinker.audio_tower.")
    }
    return hf_encoder(Encoder, config, weights, dtype)


def _audio_config(depth: int) -> dict[str, Any]:
    return {
        "num_mel_bins": 128,
        "encoder_layers": depth,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 4 * AUDIO_HIDDEN,
        "d_model": AUDIO_HIDDEN,
        "n_window": 50,
        "n_window_infer": 800,
        "output_dim": HIDDEN,
        "downsample_hidden_size": 16,
        "max_source_positions": 1500,
    }


def _text_config(vocab: dict[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [8, 4, 4],
            "mrope_interleaved": True,
            "rope_theta": 1e6,
        },
        "eos_token_id": vocab["<|im_end|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }


def _processor(vocab: dict[str, int]) -> Any:
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen3_asr import (
        Qwen3ASRFeatureExtractor,
        Qwen3ASRProcessor,
    )

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
            "audio_token": "<|audio_pad|>",
        },
        model_max_length=32768,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    return Qwen3ASRProcessor(
        feature_extractor=Qwen3ASRFeatureExtractor(),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
