# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Kinds of checkpoints, and how an engine is asked of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_mmc.demo import media
from vllm_mmc.demo.checkpoints.qwen2_5_vl import qwen2_5_vl_prompt, tiny_qwen2_5_vl
from vllm_mmc.demo.checkpoints.whisper import tiny_whisper, whisper_prompt


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint, for what goes the same way with all of them.

    Attributes:
        title: its name in texts.
        write: writes a checkpoint: (directory, depth=blocks of the encoder).
        prompt: (text, images=how many) or (text, audios=how many) -> one user turn,
            as text or as tokens.
        modality: "image" or "audio".
        samples: some requests: for each item (width, height) or seconds.
        text: of a request.
        engine_args: beside `default_engine_args`.
        pooling: `PoolingParams` of a request, if the engine pools.
        mend_stock: sets what stock's class leaves as it finds the memory.
    """

    title: str
    write: Callable[..., Path]
    prompt: Callable[..., str | list[int]]
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
    pooling: Mapping[str, Any] = field(default_factory=dict)
    mend_stock: Callable[[Any], None] = lambda model: None

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
        prompt = self.prompt(self.text, **{f"{self.modality}s": len(items)})
        return {
            "prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt,
            "multi_modal_data": {self.modality: data},
        }

    def describe(self, item: Any) -> str:
        """Returns "504 x 588 photograph" or "30 s of speech"."""
        if self.modality == "audio":
            return f"{item:g} s of speech"
        return "{} x {} photograph".format(*item)


FAMILIES = {
    "qwen2_5_vl": Family("Qwen2.5-VL", tiny_qwen2_5_vl, qwen2_5_vl_prompt),
    "whisper": Family(
        "Whisper",
        tiny_whisper,
        whisper_prompt,
        modality="audio",
        samples=([0.3], [3.0], [12.5], [30.0]),
        text="",
        engine_args={"limit_mm_per_prompt": {"audio": 1}, "max_model_len": 448},
    ),
}
"""Those whose tiny checkpoints are in the wheel."""


def family(name: str) -> Family:
    """Returns one of the families that `vllm_mmc.demo.offered` names."""
    if name in FAMILIES:
        return FAMILIES[name]
    # The others come with a checkout, never with the wheel.
    from mmc_testing import checkpoints

    return checkpoints.FAMILIES[name]
