# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the builders share beside `vllm_mmc.demo.checkpoints.common`, and Hugging Face's
encoders with a checkpoint's weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_mmc.demo.checkpoints.common import WEIGHTS_FILE


def save_preprocessor_config(path: Path, processor: Any) -> None:
    """Writes preprocessor_config.json, one for audio and images, as published."""
    parts = [processor.feature_extractor, processor.image_processor]
    settings = {key: value for part in parts for key, value in part.to_dict().items()}
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (path / "preprocessor_config.json").write_text(text)


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
