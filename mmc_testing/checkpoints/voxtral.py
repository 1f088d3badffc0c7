# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Voxtral checkpoint in Mistral's format: two text layers, 128 mel bins.

For the format the engine arguments `config_format`, `load_format` and `tokenizer_mode`
have to be "mistral". The table of positions is not in the checkpoint, as published, and
vLLM takes the dtype from the weights.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmc_testing.checkpoints.common import POSITIONS
from mmc_testing.hf_encoders import read_weights, with_weights
from mmc_testing.writer import Ids, Recipe, linear, prefixed, tokens
from vllm_mmc.demo.writer import HIDDEN, NUM_BYTES

# By rank, as published; the ranks between are fillers.
FIRST = tokens(
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] "
    "[SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
SPECIAL_TOKENS = dict(enumerate(FIRST)) | {
    **{24: "[AUDIO]", 25: "[BEGIN_AUDIO]"},
    **{32: "[ARGS]", 33: "[CALL_ID]", 34: "[TRANSCRIBE]"},
}
RANKS = {token: rank for rank, token in SPECIAL_TOKENS.items()}
NUM_SPECIAL_TOKENS = 64  # the bytes follow
VOCAB_SIZE = NUM_SPECIAL_TOKENS + NUM_BYTES

MEL_BINS = 128
DOWNSAMPLE = 4  # encoder outputs that become one embedding
SPECTROGRAM = {"num_mel_bins": MEL_BINS, "hop_length": 160, "window_size": 400}


def _vocab() -> dict[str, int]:
    return RANKS | {chr(byte): NUM_SPECIAL_TOKENS + byte for byte in range(NUM_BYTES)}


def _encode(prompt: str) -> list[int]:
    """Returns what the tokenizer makes of a prompt, the placeholders as well.

    A text cannot name the placeholders to vLLM, and vLLM inserts none.
    """
    ids = []
    for part in re.split(r"(<s>|\[[A-Z_/]+\])", prompt):
        of_bytes = [NUM_SPECIAL_TOKENS + byte for byte in part.encode()]
        ids += [RANKS[part]] if part in RANKS else of_bytes
    return ids


def _shapes(params: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    whisper = params["multimodal"]["whisper_model_args"]["encoder_args"]
    shapes: dict[str, tuple[int, ...]] = {
        "whisper_encoder.conv_layers.0.weight": (HIDDEN, MEL_BINS, 3),
        "whisper_encoder.conv_layers.0.bias": (HIDDEN,),
        "whisper_encoder.conv_layers.1.weight": (HIDDEN, HIDDEN, 3),
        "whisper_encoder.conv_layers.1.bias": (HIDDEN,),
        "whisper_encoder.transformer.norm.weight": (HIDDEN,),
        "whisper_encoder.transformer.norm.bias": (HIDDEN,),
        "audio_language_projection.0.weight": (HIDDEN, DOWNSAMPLE * HIDDEN),
        "audio_language_projection.2.weight": (HIDDEN, HIDDEN),
        "tok_embeddings.weight": (VOCAB_SIZE, HIDDEN),
    }
    for i in range(whisper["n_layers"]):
        layer = f"whisper_encoder.transformer.layers.{i}."
        for norm in ("attention_norm", "ffn_norm"):
            shapes |= {f"{layer}{norm}.{end}": (HIDDEN,) for end in ("weight", "bias")}
        for name in ("wq", "wk", "wv", "wo"):
            shapes |= linear(f"{layer}attention.{name}", HIDDEN, HIDDEN)
        del shapes[f"{layer}attention.wk.bias"]  # keys have none
        shapes |= linear(f"{layer}feed_forward.w1", HIDDEN, 4 * HIDDEN)
        shapes |= linear(f"{layer}feed_forward.w2", 4 * HIDDEN, HIDDEN)
    shapes = prefixed("mm_whisper_embeddings.", shapes)
    for i in range(params["n_layers"]):
        text: dict[str, tuple[int, ...]] = {
            "attention_norm.weight": (HIDDEN,),
            "attention.wq.weight": (HIDDEN, HIDDEN),
            "attention.wk.weight": (HIDDEN // 2, HIDDEN),
            "attention.wv.weight": (HIDDEN // 2, HIDDEN),
            "attention.wo.weight": (HIDDEN, HIDDEN),
            "ffn_norm.weight": (HIDDEN,),
            "feed_forward.w1.weight": (2 * HIDDEN, HIDDEN),
            "feed_forward.w2.weight": (HIDDEN, 2 * HIDDEN),
            "feed_forward.w3.weight": (2 * HIDDEN, HIDDEN),
        }
        shapes |= prefixed(f"layers.{i}.", text)
    return shapes | {"norm.weight": (HIDDEN,), "output.weight": (VOCAB_SIZE, HIDDEN)}


PREFIX = "mm_whisper_embeddings.whisper_encoder."
WEIGHTS = "consolidated.safetensors"
HF_NAMES = {
    "conv_layers.0.": "conv1.",
    "conv_layers.1.": "conv2.",
    "transformer.layers.": "layers.",
    "transformer.norm.": "layer_norm.",
    "attention_norm.": "self_attn_layer_norm.",
    "attention.wq.": "self_attn.q_proj.",
    "attention.wk.": "self_attn.k_proj.",
    "attention.wv.": "self_attn.v_proj.",
    "attention.wo.": "self_attn.out_proj.",
    "ffn_norm.": "final_layer_norm.",
    "feed_forward.w1.": "fc1.",
    "feed_forward.w2.": "fc2.",
}
"""Part of a parameter's name in Mistral's format -> in Hugging Face's."""


def hf_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """Returns the encoder's weights as Hugging Face names them.

    The positions, which the checkpoint does not have, are Whisper's.
    """
    from transformers.models.whisper.modeling_whisper import sinusoids

    weights = {"embed_positions.weight": sinusoids(POSITIONS, HIDDEN)}
    for name, tensor in read_weights(path, PREFIX, file=WEIGHTS).items():
        for part, renamed in HF_NAMES.items():
            name = name.replace(part, renamed)
        weights[name] = tensor
    return weights


def _load_hf_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Returns Hugging Face's Voxtral encoder with the weights of a checkpoint.

    Called with log-mel features [items, 128, 3000] it gives `.last_hidden_state`
    [items, 1500, hidden].

    Args:
        path: the checkpoint.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers.models.voxtral import VoxtralEncoderConfig
    from transformers.models.voxtral.modeling_voxtral import VoxtralEncoder

    params = json.loads((Path(path) / "params.json").read_text())
    of_whisper = params["multimodal"]["whisper_model_args"]["encoder_args"]
    config = VoxtralEncoderConfig(
        num_mel_bins=MEL_BINS,
        hidden_size=of_whisper["dim"],
        intermediate_size=of_whisper["hidden_dim"],
        num_hidden_layers=of_whisper["n_layers"],
        num_attention_heads=of_whisper["n_heads"],
        max_source_positions=of_whisper["max_source_positions"],
    )
    config._attn_implementation = "sdpa"
    return with_weights(VoxtralEncoder(config), hf_weights(path), dtype)


def _params(ids: Ids, depth: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns params.json."""
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
                    "audio_encoding_args": {"sampling_rate": 16000, **SPECTROGRAM},
                    "dim": HIDDEN,
                    "n_layers": depth,
                    "head_dim": 32,
                    "hidden_dim": 4 * HIDDEN,
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
            "audio_encoding_config": SPECTROGRAM,
            "chunk_length_s": 30.0,
        },
    }


RECIPES = {
    "voxtral": Recipe(
        "Voxtral",
        "VoxtralForConditionalGeneration",
        config=_params,
        config_file="params.json",
        least_depth=1,
        vocab=_vocab,
        tokenizer=lambda recipe, ids: None,
        generation={},
        settings={"tekken.json": _tekken()},
        template="<s>[INST]{media}{text}[/INST]",
        placeholder="[BEGIN_AUDIO]" + "[AUDIO]" * (POSITIONS // DOWNSAMPLE),  # 30 s
        encode=_encode,
        hf_class="",
        shapes=_shapes,
        hf_encoders={"audio": _load_hf_encoder},
        weights_file=WEIGHTS,
        output_layers=("output.weight",),
        scales={
            r"^layers\..*\.w[qk]\.weight$": 3,
            "tok_embeddings": HIDDEN**0.5,
        },
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        text="",
        engine_args={
            "limit_mm_per_prompt": {"audio": 2},
            "config_format": "mistral",
            "load_format": "mistral",
            "tokenizer_mode": "mistral",
        },
        serves="chat",
    )
}
