# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Voxtral checkpoint in Mistral's format, and Hugging Face's encoder."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmc_testing.checkpoints.common import hf_encoder
from vllm_mmc.demo.checkpoints.common import (
    NUM_BYTES,
    answer_in_visible_characters,
    check_depth,
    random_weights,
    rename,
    save_checkpoint,
)

WEIGHTS_FILE = "consolidated.safetensors"

# By rank, as published; the ranks between are fillers.
SPECIAL_TOKENS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    32: "[ARGS]",
    33: "[CALL_ID]",
    34: "[TRANSCRIBE]",
}
RANKS = {token: rank for rank, token in SPECIAL_TOKENS.items()}
NUM_SPECIAL_TOKENS = 64  # the bytes follow
VOCAB_SIZE = NUM_SPECIAL_TOKENS + NUM_BYTES

HIDDEN = 128  # of the text model; also the width of the audio embeddings
AUDIO_HIDDEN = 128  # four heads of 32, the smallest that attention on CPU takes
MEL_BINS = 128
POSITIONS = 1500  # of 30 s of speech, as published
DOWNSAMPLE = 4  # encoder outputs that become one embedding
CHUNK_TOKENS = POSITIONS // DOWNSAMPLE

ENCODER = "mm_whisper_embeddings.whisper_encoder."
PROJECTION = "mm_whisper_embeddings.audio_language_projection."
# Mistral's names in a transformer layer -> Hugging Face's.
LAYER_NAMES = {
    "attention.wq.": "self_attn.q_proj.",
    "attention.wk.": "self_attn.k_proj.",
    "attention.wv.": "self_attn.v_proj.",
    "attention.wo.": "self_attn.out_proj.",
    "attention_norm.": "self_attn_layer_norm.",
    "feed_forward.w1.": "fc1.",
    "feed_forward.w2.": "fc2.",
    "ffn_norm.": "final_layer_norm.",
}


def tiny_voxtral(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny Voxtral checkpoint directory: two text layers, 128 mel bins.

    It is in Mistral's format, for which the engine arguments `config_format`,
    `load_format` and `tokenizer_mode` have to be "mistral". The table of positions is
    not in it, as published.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: encoder layers, at least 1.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights; vLLM takes it from them.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 1.
    """
    check_depth(depth)
    weights = random_weights(_shapes(depth), seed=seed, dtype=dtype)
    weights["mm_whisper_embeddings.tok_embeddings.weight"] *= HIDDEN**0.5
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.startswith("layers.") and name.endswith(("wq.weight", "wk.weight")):
            tensor *= 3
    visible = {
        chr(byte): NUM_SPECIAL_TOKENS + byte for byte in range(ord("!"), ord("~") + 1)
    }
    answer_in_visible_characters(weights["output.weight"], visible)

    path = save_checkpoint(path, parts=[], weights=weights, name=WEIGHTS_FILE)
    (path / "params.json").write_text(json.dumps(_params(depth), indent=2))
    (path / "tekken.json").write_text(json.dumps(_tekken(), indent=2))
    return path


def voxtral_prompt(text: str = "", *, audios: int = 1, chunks: int = 1) -> list[int]:
    """Returns what the tokenizer makes of one user turn: audios, then text.

    These are the `prompt_token_ids` of a request: a text cannot name the placeholders,
    and vLLM inserts none.

    Args:
        text: the user's words.
        audios: audio placeholders.
        chunks: 30 s pieces of each audio, the last one padded.
    """
    audio = [RANKS["[BEGIN_AUDIO]"], *[RANKS["[AUDIO]"]] * CHUNK_TOKENS * chunks]
    return [
        RANKS["<s>"],
        RANKS["[INST]"],
        *audio * audios,
        *(NUM_SPECIAL_TOKENS + byte for byte in text.encode()),
        RANKS["[/INST]"],
    ]


def load_hf_voxtral_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Returns Hugging Face's Voxtral encoder and projector with these weights.

    Called with log-mel features [chunks, 128, 3000] it gives [375 * chunks, hidden
    size of the text model].

    Args:
        path: a directory that `tiny_voxtral` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from safetensors.torch import load_file
    from transformers import VoxtralConfig
    from transformers.models.voxtral.modeling_voxtral import (
        VoxtralEncoder,
        VoxtralMultiModalProjector,
    )
    from transformers.models.whisper.modeling_whisper import sinusoids

    directory = Path(path)
    params = json.loads((directory / "params.json").read_text())
    audio = params["multimodal"]["whisper_model_args"]["encoder_args"]
    config = VoxtralConfig(
        audio_config={
            "hidden_size": audio["dim"],
            "intermediate_size": audio["hidden_dim"],
            "num_hidden_layers": audio["n_layers"],
            "num_attention_heads": audio["n_heads"],
            "num_mel_bins": audio["audio_encoding_args"]["num_mel_bins"],
            "max_source_positions": audio["max_source_positions"],
        },
        text_config={"hidden_size": params["dim"]},
    )

    class Encoder(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.audio_tower = VoxtralEncoder(config.audio_config)
            self.multi_modal_projector = VoxtralMultiModalProjector(config)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = self.audio_tower(features).last_hidden_state
            stacked = hidden.reshape(-1, DOWNSAMPLE * hidden.shape[-1])
            return self.multi_modal_projector(stacked)

    weights = {
        _hf_name(name): tensor
        for name, tensor in load_file(directory / WEIGHTS_FILE).items()
        if name.startswith((ENCODER, PROJECTION))
    }
    weights["audio_tower.embed_positions.weight"] = sinusoids(POSITIONS, AUDIO_HIDDEN)
    return hf_encoder(Encoder, config, weights, dtype)


def _hf_name(name: str) -> str:
    name = rename(
        name,
        {
            f"{PROJECTION}0.": "multi_modal_projector.linear_1.",
            f"{PROJECTION}2.": "multi_modal_projector.linear_2.",
            f"{ENCODER}conv_layers.0.": "audio_tower.conv1.",
            f"{ENCODER}conv_layers.1.": "audio_tower.conv2.",
            f"{ENCODER}transformer.norm.": "audio_tower.layer_norm.",
            f"{ENCODER}transformer.": "audio_tower.",
        },
    )
    if not name.startswith("audio_tower.layers."):
        return name
    tower, layers, number, rest = name.split(".", 3)
    return f"{tower}.{layers}.{number}.{rename(rest, LAYER_NAMES)}"


def _shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Returns published parameter name -> shape."""
    wide, ffn, text_ffn = AUDIO_HIDDEN, 4 * AUDIO_HIDDEN, 2 * HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        f"{ENCODER}conv_layers.0.weight": (wide, MEL_BINS, 3),
        f"{ENCODER}conv_layers.0.bias": (wide,),
        f"{ENCODER}conv_layers.1.weight": (wide, wide, 3),
        f"{ENCODER}conv_layers.1.bias": (wide,),
        f"{ENCODER}transformer.norm.weight": (wide,),
        f"{ENCODER}transformer.norm.bias": (wide,),
        f"{PROJECTION}0.weight": (HIDDEN, DOWNSAMPLE * wide),
        f"{PROJECTION}2.weight": (HIDDEN, HIDDEN),
        "mm_whisper_embeddings.tok_embeddings.weight": (VOCAB_SIZE, HIDDEN),
        "norm.weight": (HIDDEN,),
        "output.weight": (VOCAB_SIZE, HIDDEN),
    }
    for i in range(depth):
        layer = f"{ENCODER}transformer.layers.{i}."
        for norm in ("attention_norm", "ffn_norm"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (wide,)
        for linear in ("wq", "wk", "wv", "wo"):
            shapes[f"{layer}attention.{linear}.weight"] = (wide, wide)
            if linear != "wk":
                shapes[f"{layer}attention.{linear}.bias"] = (wide,)
        shapes[f"{layer}feed_forward.w1.weight"] = (ffn, wide)
        shapes[f"{layer}feed_forward.w1.bias"] = (ffn,)
        shapes[f"{layer}feed_forward.w2.weight"] = (wide, ffn)
        shapes[f"{layer}feed_forward.w2.bias"] = (wide,)
    for i in range(2):
        layer = f"layers.{i}."
        shapes |= {
            f"{layer}attention_norm.weight": (HIDDEN,),
            f"{layer}attention.wq.weight": (HIDDEN, HIDDEN),
            f"{layer}attention.wk.weight": (HIDDEN // 2, HIDDEN),
            f"{layer}attention.wv.weight": (HIDDEN // 2, HIDDEN),
            f"{layer}attention.wo.weight": (HIDDEN, HIDDEN),
            f"{layer}ffn_norm.weight": (HIDDEN,),
            f"{layer}feed_forward.w1.weight": (text_ffn, HIDDEN),
            f"{layer}feed_forward.w2.weight": (HIDDEN, text_ffn),
            f"{layer}feed_forward.w3.weight": (text_ffn, HIDDEN),
        }
    return shapes


def _params(depth: int) -> dict[str, Any]:
    return {
        "dim": HIDDEN,
        "n_layers": 2,
        "head_dim": 32,
        "hidden_dim": 2 * HIDDEN,
        "n_heads": 4,
        "n_kv_heads": 2,
        "rope_theta": 1e8,
        "norm_eps": 1e-5,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 32768,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": {
                    "audio_encoding_args": {
                        "sampling_rate": 16000,
                        "num_mel_bins": MEL_BINS,
                        "hop_length": 160,
                        "window_size": 400,
                    },
                    "dim": AUDIO_HIDDEN,
                    "n_layers": depth,
                    "head_dim": 32,
                    "hidden_dim": 4 * AUDIO_HIDDEN,
                    "n_heads": 4,
                    "vocab_size": 51866,
                    "max_source_positions": POSITIONS,
                },
                "downsample_args": {"downsample_factor": DOWNSAMPLE},
            }
        },
    }


def _tekken() -> dict[str, Any]:
    """Returns tekken.json: one token per byte, and audio in chunks of 30 s."""
    return {
        "config": {
            "pattern": r"[\s\S]",
            "num_vocab_tokens": NUM_BYTES,
            "default_vocab_size": VOCAB_SIZE,
            "default_num_special_tokens": NUM_SPECIAL_TOKENS,
            "version": "v11",
        },
        "vocab": [
            {
                "rank": byte,
                "token_bytes": base64.b64encode(bytes([byte])).decode(),
                "token_str": chr(byte) if byte < 128 else None,
            }
            for byte in range(NUM_BYTES)
        ],
        "special_tokens": [
            {
                "rank": rank,
                "token_str": SPECIAL_TOKENS.get(rank, f"<SPECIAL_{rank}>"),
                "is_control": True,
            }
            for rank in range(NUM_SPECIAL_TOKENS)
        ],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {
                "num_mel_bins": MEL_BINS,
                "hop_length": 160,
                "window_size": 400,
            },
            "chunk_length_s": 30.0,
        },
    }
