# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Hugging Face's Whisper encoder with the weights of a tiny checkpoint."""

from pathlib import Path

import torch

from mmc_testing.checkpoints.common import hf_encoder, read_weights


def load_hf_whisper_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Whisper encoder with these weights.

    Called with log-mel features [items, 80, 3000] it gives `.last_hidden_state` [items,
    1500, hidden].

    Args:
        path: a directory that `tiny_whisper` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = AutoConfig.from_pretrained(path)
    weights = read_weights(path, "model.encoder.")
    return hf_encoder(WhisperEncoder, config, weights, dtype)
