# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Kimi-Audio checkpoint, and Hugging Face's encoder with its weights."""

import base64
import json
from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import hf_encoder, read_weights
from vllm_mmc.demo.checkpoints.common import (
    NUM_BYTES,
    answer_in_visible_characters,
    check_depth,
    parameter_shapes,
    random_weights,
    save_checkpoint,
)

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
VOCAB_SIZE = 151680

HIDDEN = 128  # of the text model and of the encoder: four heads of 32 in both
POSITIONS = 1500  # of 30 s of speech, as published
TIME_MERGE = 4  # encoder positions per audio token

ENCODER_DIRECTORY = "whisper-large-v3"  # vLLM looks for the encoder there

# Neither vLLM nor transformers has the config class; the published one comes with the
# checkpoint as well.
CONFIG_MODULE = "configuration_moonshot_kimia"
CONFIG_CODE = '''\
"""Stands in for the config class that is published with Kimi-Audio."""

from transformers import Qwen2Config


class KimiAudioConfig(Qwen2Config):
    model_type = "kimi_audio"
'''


def tiny_kimi_audio(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny Kimi-Audio checkpoint directory: two text layers, 128 mel bins.

    As published, the Whisper encoder is a checkpoint of its own in a subdirectory, with
    a decoder that nobody uses, and the config class is a Python file of the checkpoint,
    so an engine needs `trust_remote_code`. Here that file is a stand-in of five lines.
    Unlike the published model the output layer is the embedding, for less on disk.

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
    from transformers import (
        GenerationConfig,
        Qwen2ForCausalLM,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )
    from transformers.models.whisper.modeling_whisper import sinusoids

    check_depth(depth)
    path = Path(path)
    config, encoder_config = _config(dtype), _encoder_config(depth, dtype)
    encoder_shapes = parameter_shapes(
        WhisperForConditionalGeneration, encoder_config, renames={}
    )
    del encoder_shapes["proj_out.weight"]  # published as the decoder's embedding only
    encoder_weights = random_weights(encoder_shapes, seed=seed, dtype=dtype)
    encoder_weights["model.encoder.embed_positions.weight"] = sinusoids(
        POSITIONS, HIDDEN
    ).to(dtype)
    save_checkpoint(
        path / ENCODER_DIRECTORY,
        parts=[encoder_config, WhisperFeatureExtractor(feature_size=128)],
        weights=encoder_weights,
    )

    shapes = parameter_shapes(Qwen2ForCausalLM, config, renames={})
    del shapes["lm_head.weight"]
    adaptor = "model.vq_adaptor.layers"
    shapes |= {
        f"{adaptor}.0.weight": (HIDDEN, TIME_MERGE * HIDDEN),
        f"{adaptor}.0.bias": (HIDDEN,),
        f"{adaptor}.3.weight": (HIDDEN, HIDDEN),
        f"{adaptor}.3.bias": (HIDDEN,),
        f"{adaptor}.4.weight": (HIDDEN,),
        f"{adaptor}.4.bias": (HIDDEN,),
    }
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.endswith(("self_attn.q_proj.weight", "self_attn.k_proj.weight")):
            tensor *= 4
    # It is the output layer too: large rows would answer with the token before.
    embed_tokens = weights["model.embed_tokens.weight"]
    embed_tokens *= 0.05
    answer_in_visible_characters(embed_tokens, _byte_tokens())

    save_checkpoint(
        path,
        parts=[
            config,
            GenerationConfig(
                do_sample=False,
                bos_token_id=config.bos_token_id,
                pad_token_id=config.pad_token_id,
                eos_token_id=[config.eos_token_id, SPECIAL_TOKENS["<|im_msg_end|>"]],
            ),
        ],
        weights=weights,
    )
    (path / f"{CONFIG_MODULE}.py").write_text(CONFIG_CODE)
    _save_tokenizer(path)
    return path


def kimi_audio_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns one user turn: text, then audio, as vLLM asks for a transcript.

    Args:
        text: the user's words.
        audios: Kimi-Audio hears at most one at a time in vLLM.
    """
    placeholder = "<|im_media_begin|><|im_kimia_text_blank|><|im_media_end|>"
    return (
        f"<|im_kimia_user_msg_start|>{text}{placeholder * audios}<|im_msg_end|>"
        "<|im_kimia_assistant_msg_start|>"
    )


def load_hf_kimi_audio_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Whisper encoder with these weights.

    Called with log-mel features [items, 128, 3000] it gives `.last_hidden_state`
    [items, 1500, hidden].

    Args:
        path: a directory that `tiny_kimi_audio` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    path = Path(path) / ENCODER_DIRECTORY
    config = WhisperConfig.from_pretrained(path)
    weights = read_weights(path, "model.encoder.")
    return hf_encoder(WhisperEncoder, config, weights, dtype)


def zero_bias_of_keys(model: Any) -> None:
    """Keys have no bias in the checkpoint, and vLLM's class leaves it uninitialised."""
    for layer in model.audio_tower.layers:
        _, key, _ = layer.self_attn.qkv_proj.bias.data.chunk(3)
        key.zero_()


def _config(dtype: torch.dtype) -> Any:
    from transformers import Qwen2Config

    # As in CONFIG_CODE: the class of the checkpoint is not there yet.
    class KimiAudioConfig(Qwen2Config):
        model_type = "kimi_audio"

    return KimiAudioConfig(
        architectures=["MoonshotKimiaForCausalLM"],
        auto_map={"AutoConfig": f"{CONFIG_MODULE}.KimiAudioConfig"},
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        rope_theta=1e6,
        tie_word_embeddings=True,
        kimia_adaptor_input_dim=TIME_MERGE * HIDDEN,
        kimia_media_begin=SPECIAL_TOKENS["<|im_media_begin|>"],
        kimia_media_end=SPECIAL_TOKENS["<|im_media_end|>"],
        use_whisper_feature=True,
        bos_token_id=SPECIAL_TOKENS["[BOS]"],
        eos_token_id=SPECIAL_TOKENS["[EOS]"],
        pad_token_id=SPECIAL_TOKENS["[EOS]"],
        dtype=dtype,
    )


def _encoder_config(depth: int, dtype: torch.dtype) -> Any:
    from transformers import WhisperConfig

    return WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=NUM_BYTES,
        num_mel_bins=128,
        d_model=HIDDEN,
        encoder_layers=depth,
        encoder_attention_heads=4,
        encoder_ffn_dim=4 * HIDDEN,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=4 * HIDDEN,
        max_source_positions=POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        dtype=dtype,
    )


def _byte_tokens() -> dict[str, int]:
    return {chr(byte): byte for byte in range(NUM_BYTES)}


def _save_tokenizer(path: Path) -> None:
    """Writes what vLLM's tokenizer reads: the bytes, and the special tokens."""
    lines = [
        f"{base64.b64encode(bytes([byte])).decode()} {byte}\n"
        for byte in range(NUM_BYTES)
    ]
    (path / "tiktoken.model").write_text("".join(lines))
    added = {
        str(i): {"content": token, "special": True}
        for token, i in SPECIAL_TOKENS.items()
    }
    config = {"added_tokens_decoder": added, "model_max_length": 8192}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
