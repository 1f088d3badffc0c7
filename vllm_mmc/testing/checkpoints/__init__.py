# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints that are real in everything but size and training.

Each builder writes a directory that vLLM and Hugging Face load as they load the
published checkpoint of the same family: real config class, tokenizer, processor and
chat template, the published parameter names, and random weights.
One module per family; what the families share is in `common`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_mmc.testing import media
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
from vllm_mmc.testing.checkpoints.qwen3_asr import (
    load_hf_qwen3_asr_encoder,
    qwen3_asr_prompt,
    tiny_qwen3_asr,
)
from vllm_mmc.testing.checkpoints.whisper import (
    load_hf_whisper_encoder,
    tiny_whisper,
    whisper_prompt,
)

__all__ = [
    "FAMILIES",
    "Family",
    "llama4_prompt",
    "load_hf_llama4_encoder",
    "load_hf_qwen3_asr_encoder",
    "load_hf_vision_tower",
    "load_hf_whisper_encoder",
    "qwen2_5_vl_prompt",
    "qwen3_asr_prompt",
    "tiny_llama4",
    "tiny_qwen2_5_vl",
    "tiny_qwen3_asr",
    "tiny_whisper",
    "whisper_prompt",
]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint, for what goes the same way with all of them.

    Attributes:
        title: its name in texts.
        write: writes a checkpoint: (directory, depth=blocks of the encoder).
        prompt: (text, images=how many) or (text, audios=how many) -> one user turn.
        modality: "image" or "audio".
        samples: some requests: for each item (width, height) or seconds.
        text: of a request.
        engine_args: beside `default_engine_args`.
    """

    title: str
    write: Callable[..., Path]
    prompt: Callable[..., str]
    modality: str = "image"
    samples: Sequence[Sequence[Any]] = (
        [(224, 224)],
        [(448, 336)],
        [(504, 588)],
        [(280, 280), (336, 224)],
    )
    text: str = "Who is this?"
    # No video: vLLM would profile the encoder with two of the largest, 10 s each start.
    engine_args: Mapping[str, Any] = field(
        default_factory=lambda: {"limit_mm_per_prompt": {"image": 2, "video": 0}}
    )

    def request(self, items: Sequence[Any]) -> dict[str, Any]:
        """Returns what `LLM.generate` takes: real pictures or speech, and the text.

        Args:
            items: as in `samples`.
        """
        data: list[Any]
        if self.modality == "audio":
            data = [(media.speech(seconds), media.SPEECH_RATE) for seconds in items]
        else:
            data = [media.photograph_at(*size) for size in items]
        return {
            "prompt": self.prompt(self.text, **{f"{self.modality}s": len(items)}),
            "multi_modal_data": {self.modality: data},
        }

    def describe(self, item: Any) -> str:
        """Returns "504 x 588 photograph" or "30 s of speech"."""
        if self.modality == "audio":
            return f"{item:g} s of speech"
        return "{} x {} photograph".format(*item)


FAMILIES = {
    "qwen2_5_vl": Family("Qwen2.5-VL", tiny_qwen2_5_vl, qwen2_5_vl_prompt),
    "llama4": Family("Llama4", tiny_llama4, llama4_prompt),
    "whisper": Family(
        "Whisper",
        tiny_whisper,
        whisper_prompt,
        modality="audio",
        samples=([0.3], [3.0], [12.5], [30.0]),
        text="",
        engine_args={"limit_mm_per_prompt": {"audio": 1}, "max_model_len": 448},
    ),
    "qwen3_asr": Family(
        "Qwen3-ASR",
        tiny_qwen3_asr,
        qwen3_asr_prompt,
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        text="",
        engine_args={"limit_mm_per_prompt": {"audio": 2}},
    ),
}
