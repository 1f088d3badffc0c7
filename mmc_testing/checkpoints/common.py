# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the recipes share, and Hugging Face's encoders with a checkpoint's weights."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmc_testing.writer import linear, prefixed
from vllm_mmc.demo.writer import WEIGHTS_FILE

VOCAB_SIZE = 320  # the bytes, the special tokens, then unused rows
HIDDEN = 128  # of the text models and of the audio encoders: heads of 32 in both
POSITIONS = 1500  # of 30 s of speech, as published

WHISPER_ENCODER = "transformers.models.whisper.modeling_whisper:WhisperEncoder"


def qwen_chat_template(placeholder: str) -> str:
    """Returns Qwen's turns with the parts of each in the order in which they come.

    Args:
        placeholder: of whatever is not text.
    """
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'text' %}{{ content['text'] }}"
        "{% else %}" + placeholder + "{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def text_sizes(**overrides: Any) -> dict[str, Any]:
    """Returns the sizes of a text model of two layers, by their usual names.

    Args:
        overrides: further values, or others for these.
    """
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    } | overrides


def whisper_sizes(depth: int, **overrides: Any) -> dict[str, Any]:
    """Returns the sizes of an audio encoder, by Whisper's names.

    Args:
        depth: layers.
        overrides: further values, or others for these.
    """
    return {
        "num_mel_bins": 128,
        "d_model": HIDDEN,
        "encoder_layers": depth,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 4 * HIDDEN,
        "max_source_positions": POSITIONS,
    } | overrides


def whisper_tokens(end: int, **overrides: Any) -> dict[str, Any]:
    """Returns what a config of Whisper says of tokens, where its decoder is not used.

    Args:
        end: id of the token that stands for all special ones.
        overrides: further values, or others for these.
    """
    roles = ("bos", "eos", "pad", "decoder_start")
    return {
        **dict.fromkeys((f"{role}_token_id" for role in roles), end),
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    } | overrides


class BothPreprocessors:
    """Writes preprocessor_config.json, one for audio and images, as published."""

    def __init__(self, processor: Any) -> None:
        self.parts = processor.feature_extractor, processor.image_processor

    def save_pretrained(self, path: Path) -> None:
        settings = {k: v for part in self.parts for k, v in part.to_dict().items()}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (path / "preprocessor_config.json").write_text(text)


@dataclass(frozen=True)
class HuggingFaceEncoder:
    """Loads Hugging Face's encoder with the weights of a checkpoint.

    Attributes:
        encoder: "module:Class".
        prefix: of its parameters in the checkpoint.
        config: where its config is in config.json.
        directory: of the checkpoint, with weights and config.json.
    """

    encoder: str
    prefix: str
    config: tuple[str, ...] = ()
    directory: str = "."

    def __call__(
        self, path: Path | str, *, dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """Returns the encoder, in eval mode, with parameters in `dtype`.

        Args:
            path: the checkpoint.
            dtype: parameters are converted to it.

        Raises:
            RuntimeError: if a parameter is missing or left over, or a shape differs.
        """
        module, _, name = self.encoder.partition(":")
        encoder_class = getattr(importlib.import_module(module), name)
        directory = Path(path) / self.directory
        settings = json.loads((directory / "config.json").read_text())
        for key in self.config:
            settings = settings[key]
        config = encoder_class.config_class(**settings)
        weights = read_weights(directory, self.prefix)
        return hf_encoder(encoder_class, config, weights, dtype)


def read_weights(path: Path | str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Returns the checkpoint's tensors under `prefix`, with the prefix taken off."""
    from safetensors.torch import load_file

    return {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(Path(path) / WEIGHTS_FILE).items()
        if name.startswith(prefix)
    }


def hf_encoder(
    encoder_class: Callable[[Any], nn.Module],
    config: Any,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> nn.Module:
    """Returns `encoder_class(config)` with exactly these weights, to compare with."""
    config._attn_implementation = "sdpa"
    encoder = encoder_class(config)
    encoder.load_state_dict(weights, strict=True)
    return encoder.to(dtype).eval().requires_grad_(False)


def vq_adaptor(first: int, second: int, norm: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what makes one embedding of four encoder outputs.

    Args:
        first: index of the first linear layer.
        second: of the second.
        norm: of the layer norm.
    """
    shapes = {
        **linear(f"{first}", 4 * HIDDEN, HIDDEN),
        **linear(f"{second}", HIDDEN, HIDDEN),
        f"{norm}.weight": (HIDDEN,),
        f"{norm}.bias": (HIDDEN,),
    }
    return prefixed("model.vq_adaptor.layers.", shapes)
