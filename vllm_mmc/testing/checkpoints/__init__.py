# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints that are real in everything but size and training.

Each builder writes a directory that vLLM and Hugging Face load as they load the
published checkpoint of the same family: real config class, tokenizer, processor and
chat template, the published parameter names, and random weights.
One module per family; what the families share is in `common`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vllm_mmc.testing.checkpoints.llama4 import (
    llama4_prompt,
    load_hf_llama4_encoder,
    tiny_llama4,
)
from vllm_mmc.testing.checkpoints.qwen2_5_vl import (
    load_hf_vision_tower,
    qwen2_5_vl_prompt,
    tiny_qwen2_5_vl,
)

__all__ = [
    "FAMILIES",
    "Family",
    "llama4_prompt",
    "load_hf_llama4_encoder",
    "load_hf_vision_tower",
    "qwen2_5_vl_prompt",
    "tiny_llama4",
    "tiny_qwen2_5_vl",
]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint, for what goes the same way with all of them.

    Attributes:
        title: its name in texts.
        write: writes a checkpoint: (directory, depth=blocks of the encoder).
        prompt: (text, images=how many) -> one user turn.
    """

    title: str
    write: Callable[..., Path]
    prompt: Callable[..., str]


FAMILIES = {
    "qwen2_5_vl": Family("Qwen2.5-VL", tiny_qwen2_5_vl, qwen2_5_vl_prompt),
    "llama4": Family("Llama4", tiny_llama4, llama4_prompt),
}
