# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Clef-Omni checkpoint: Qwen3-Omni's, and a head that answers questions.

As published, the config is Qwen3-Omni's: vLLM knows the model by its
joint_head_config.json.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.qwen3_omni import QWEN3_OMNI
from mmc_testing.hf_encoders import read_weights
from vllm_mmc.demo.writer import HIDDEN, WEIGHTS_FILE, random_weights

HEAD = {
    "hidden_size": HIDDEN,
    "width": 64,
    "routing_layers": 2,
    "layers": 2,
    "heads": 4,
    "feedforward": 128,
}

# Of each its type (0: true or false, 1: a choice), its words and its options.
QUESTIONS = (
    (0, "Does somebody speak?", ("true", "false")),
    (1, "Who is this?", ("man", "woman", "child", "nobody")),
)
# In a prompt it is what the user says last.
QUESTIONS_TEXT = "\n".join(
    words for _, question, options in QUESTIONS for words in (question, *options)
)
# <|im_end|>, <|im_start|>, and every character is a token.
TOKENS_AFTER_TEXT = 2 + len("\nassistant\n")


def _write_head(path: Path, *, seed: int, dtype: torch.dtype, **_: Any) -> None:
    from safetensors.torch import save_file
    from vllm.model_executor.models.clef_omni import (
        JOINT_HEAD_WEIGHTS,
        JointSchemaHead,
    )

    with torch.device("meta"):
        state = JointSchemaHead(**HEAD).state_dict()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    save_file(weights, path / JOINT_HEAD_WEIGHTS, {"format": "pt"})
    (path / "joint_head_config.json").write_text(json.dumps(HEAD, indent=2))
    # Without an index vLLM takes the head's weights for the thinker's.
    index = {"weight_map": dict.fromkeys(sorted(read_weights(path)), WEIGHTS_FILE)}
    (path / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps(index, indent=2))


def joint_schema() -> dict[str, Any]:
    """Returns where `QUESTIONS` stand in a prompt that ends with `QUESTIONS_TEXT`."""

    def span(words: str) -> list[int]:
        start = QUESTIONS_TEXT.index(words) - len(QUESTIONS_TEXT) - TOKENS_AFTER_TEXT
        return [start, start + len(words)]

    return {
        "question_types": [kind for kind, _, _ in QUESTIONS],
        "question_spans": [span(question) for _, question, _ in QUESTIONS],
        "option_spans": [span(words) for *_, options in QUESTIONS for words in options],
        "option_counts": [len(options) for *_, options in QUESTIONS],
    }


RECIPES = {
    "clef_omni": replace(
        QWEN3_OMNI,
        title="Clef-Omni",
        finish=_write_head,
        text=QUESTIONS_TEXT,
        engine_args={**QWEN3_OMNI.engine_args, "runner": "pooling"},
        pooling={"extra_kwargs": {"joint_schema": joint_schema()}},
        serves="",
    )
}
