# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Hugging Face's encoders with the weights of a checkpoint, to compare with."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vllm_mmc.demo.writer import WEIGHTS_FILE


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
        config._attn_implementation = "sdpa"
        return with_weights(encoder_class(config), weights, dtype)


def whisper_encoder(
    prefix: str, *config: str, directory: str = "."
) -> dict[str, HuggingFaceEncoder]:
    """Returns the `hf_encoders` of a recipe whose encoder is Whisper's.

    Called with log-mel features [items, bins, 3000] the encoder gives
    `.last_hidden_state` [items, 1500, hidden]. It masks no padding.
    """
    encoder = "transformers.models.whisper.modeling_whisper:WhisperEncoder"
    return {"audio": HuggingFaceEncoder(encoder, prefix, config, directory)}


def read_weights(
    path: Path | str, prefix: str = "", *, file: str = WEIGHTS_FILE
) -> dict[str, torch.Tensor]:
    """Returns the checkpoint's tensors under `prefix`, with the prefix taken off."""
    from safetensors.torch import load_file

    return {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(Path(path) / file).items()
        if name.startswith(prefix)
    }


class Projected(nn.Module):
    """A tower and its projector, called as the tower is."""

    def __init__(self, tower: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.projector(self.tower(*args).last_hidden_state)


def with_weights(
    encoder: nn.Module, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> nn.Module:
    """Returns the encoder with exactly these weights, in eval mode.

    Args:
        encoder: of Hugging Face.
        weights: of all its parameters.
        dtype: of the parameters. Llama4's rotary table stays complex.
    """
    encoder.load_state_dict(weights, strict=True)
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return encoder.eval().requires_grad_(False)
