# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Kimi-Audio checkpoint: two text layers, 128 mel bins.

As published, the Whisper encoder is a checkpoint of its own in a subdirectory, with a
decoder that nobody uses, and the config class is a Python file of the checkpoint, so an
engine needs `trust_remote_code`. Unlike the published model the output layer is the
embedding, for less on disk.
"""

import base64
from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    features_beside,
    vq_adaptor,
    whisper_sizes,
    whisper_tokens,
)
from mmc_testing.hf_encoders import whisper_encoder
from mmc_testing.writer import Ids, Recipe, remote_code
from vllm_mmc.demo.writer import HIDDEN, NUM_BYTES, text_sizes

# Their ids are in vLLM's code, so the vocabulary is as long as the published one.
SPECIAL_TOKENS = {
    "[BOS]": 151643,
    "[EOS]": 151644,
    "<|im_msg_end|>": 151645,
    "<|im_media_begin|>": 151661,
    "<|im_media_end|>": 151663,
    "<|im_kimia_text_blank|>": 151666,
    "<|im_kimia_text_eos|>": 151667,
    "<|im_kimia_user_msg_start|>": 151670,
    "<|im_kimia_assistant_msg_start|>": 151671,
}
ENCODER_DIRECTORY = "whisper-large-v3"  # vLLM looks for the encoder there
CONFIG_MODULE = "configuration_moonshot_kimia"


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from mmc_testing.remote_code.configuration_moonshot_kimia import KimiAudioConfig

    return KimiAudioConfig(
        auto_map={"AutoConfig": f"{CONFIG_MODULE}.KimiAudioConfig"},
        **text_sizes(vocab_size=151680, max_position_embeddings=8192),
        rope_theta=1e6,
        tie_word_embeddings=True,
        kimia_adaptor_input_dim=4 * HIDDEN,
        kimia_media_begin=ids["<|im_media_begin|>"],
        kimia_media_end=ids["<|im_media_end|>"],
        use_whisper_feature=True,
        bos_token_id=ids["[BOS]"],
        eos_token_id=ids["[EOS]"],
        pad_token_id=ids["[EOS]"],
    )


def _encoder_config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import WhisperConfig

    return WhisperConfig(
        **whisper_sizes(depth, vocab_size=NUM_BYTES),
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=4 * HIDDEN,
        **whisper_tokens(0),
    )


ENCODER = Recipe(
    "Kimi-Audio's encoder",
    "WhisperForConditionalGeneration",
    config=_encoder_config,
    least_depth=1,
    tokenizer=lambda recipe, ids: None,
    processor=features_beside(128),
    template="",
    placeholder="",
    generation={},
    output_layers=(),
    sinusoids=r"encoder\.embed_positions",
)


def _write_encoder(path: Path, **given: Any) -> None:
    ENCODER.write(path / ENCODER_DIRECTORY, **given)


def _zero_bias_of_keys(model: Any) -> None:
    """Keys have no bias in the checkpoint, and vLLM's class leaves it uninitialised."""
    for layer in model.audio_tower.layers:
        _, key, _ = layer.self_attn.qkv_proj.bias.data.chunk(3)
        key.zero_()


RECIPES = {
    "kimi_audio": Recipe(
        "Kimi-Audio",
        "MoonshotKimiaForCausalLM",
        config=_config,
        least_depth=1,
        vocab=lambda: {chr(byte): byte for byte in range(NUM_BYTES)} | SPECIAL_TOKENS,
        tokenizer=lambda recipe, ids: None,
        # Text, then audio, as vLLM asks for a transcript.
        template=(
            "<|im_kimia_user_msg_start|>{text}{media}<|im_msg_end|>"
            "<|im_kimia_assistant_msg_start|>"
        ),
        placeholder="<|im_media_begin|><|im_kimia_text_blank|><|im_media_end|>",
        generation={
            "bos_token_id": "[BOS]",
            "pad_token_id": "[EOS]",
            "eos_token_id": ("[EOS]", "<|im_msg_end|>"),
        },
        files={
            **remote_code(f"{CONFIG_MODULE}.py"),
            # vLLM's tokenizer reads the bytes here, and the special tokens below.
            "tiktoken.model": "".join(
                f"{base64.b64encode(bytes([byte])).decode()} {byte}\n"
                for byte in range(NUM_BYTES)
            ),
        },
        settings={
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    str(i): {"content": token, "special": True}
                    for token, i in SPECIAL_TOKENS.items()
                },
                "model_max_length": 8192,
            }
        },
        hf_class="Qwen2ForCausalLM",
        shapes=lambda config: vq_adaptor(0, 3, 4),
        scales={
            r"self_attn\.[qk]_proj\.weight$": 4,
            # It is the output layer too: large rows would answer with the token before.
            "embed_tokens": 0.05,
        },
        finish=_write_encoder,
        modality="audio",
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="",
        # The config's code comes with the checkpoint.
        engine_args={"limit_mm_per_prompt": {"audio": 1}, "trust_remote_code": True},
        mend_model=_zero_bias_of_keys,
        hf_encoders=whisper_encoder("model.encoder.", directory=ENCODER_DIRECTORY),
        serves="transcriptions",
    )
}
