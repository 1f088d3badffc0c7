# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The tiny towers of nearly all encoder classes that vLLM 0.32 has.

`TOWERS` by name; `CANNOT` has those that cannot be built or run on CPU, and why.
"""

import importlib

import torch.nn as nn

from mmc_testing.census import CENSUS
from tests.encoder import (
    towers_audio,
    towers_conformers,
    towers_fixed,
    towers_native,
    towers_timm,
)
from tests.encoder.tower import Call, Tower, run, tower_config
from vllm_mmc.catalog import REWRITES

__all__ = [
    "CANNOT",
    "TOWERS",
    "Call",
    "Tower",
    "encoder_rewrites",
    "run",
    "tower_config",
]

TOWERS: dict[str, Tower] = (
    towers_fixed.TOWERS
    | towers_native.TOWERS
    | towers_audio.TOWERS
    | towers_conformers.TOWERS
    | towers_timm.TOWERS
)


def encoder_rewrites(tower: str) -> dict[type[nn.Module], type[nn.Module]]:
    """Returns the classes that architectures with this tower exchange."""
    found: dict[type[nn.Module], type[nn.Module]] = {}
    for architecture, path in REWRITES.items():
        if tower in CENSUS[architecture]:
            module, _, name = path.partition(":")
            found |= getattr(importlib.import_module(module), name)
    return found


CANNOT: dict[str, str] = {
    "openpangu_vl": "OpenPanguVisionTransformer raises RuntimeError when it is built: "
    "it has no TORCH_SDPA, the one attention backend on CPU (openpangu_vl.py:410).",
    "minimax_m3": "MiniMaxVLVisionModel makes its rotary tables in a Triton kernel, "
    "which raises TypeError without a GPU (mrope_vit_setup.py:135).",
    "glm5next": "Glm5NextVisionAttention norms queries and keys in a Triton kernel, "
    "fused_q_kv_rmsnorm, which raises TypeError without a GPU "
    "(jit_warmup_triton_helper.py:268).",
    "mimo_vision_windows": "MiMoVisionAttention computes blocks with a window in a "
    "Triton kernel, which raises TypeError without a GPU "
    "(triton_prefill_attention.py:270); `mimo_vision` has full attention only.",
    "dots3_note": "vllm.models.dots3_note raises ImportError: it imports the CUDA "
    "FlashAttention extension (dots3_note/nvidia/attention.py).",
    "llama_nemotron_nano_vl": "LlamaNemotronVLChatModel makes its tower from code in "
    "the checkpoint's repository, which is not here (nemotron_vl.py).",
    "voxtral_realtime": "WhisperCausalEncoder attends through the decoder's KV cache "
    "and is part of the decoder's graph: it is no tower (whisper_causal.py).",
}
