# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Hugging Face's Qwen2.5-VL vision tower with the weights of a tiny checkpoint."""

from pathlib import Path

import torch

from mmc_testing.checkpoints.common import hf_encoder, read_weights


def load_hf_vision_tower(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen2.5-VL vision tower with the checkpoint's weights.

    Called as `tower(pixel_values, grid_thw).pooler_output` it gives the embeddings,
    [tokens, out_hidden_size], that vLLM's tower gives.

    Args:
        path: a directory that `tiny_qwen2_5_vl` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    config = AutoConfig.from_pretrained(path).vision_config
    weights = read_weights(path, "visual.")
    return hf_encoder(Qwen2_5_VisionTransformerPretrainedModel, config, weights, dtype)
