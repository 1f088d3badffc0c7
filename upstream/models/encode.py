# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the encoder of a tiny model makes of batches: of the vLLM that is on the path.

python encode.py FAMILY CHECKPOINT DTYPE FILE    # eager, written to FILE
"""

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import embed_inputs, load_model, tower_context

Outputs = list[list[torch.Tensor]]
"""Batch -> the embeddings of each item."""

SECONDS: Sequence[Sequence[Any]] = (
    (3.0, 30.0),
    (12.5, 0.3, 29.0, 1.0, 7.7),
    (8.0, 16.01),
)
"""Of speech, batches of it: less than a window, whole windows, several."""
ALONE = {"kimi_audio", "ultravox"}
"""What stock makes of a clip depends on its batch: it gets one."""


@contextlib.contextmanager
def model(
    family: str, checkpoint: Path, dtype: torch.dtype, **args: Any
) -> Iterator[tuple[VllmConfig, nn.Module]]:
    """The model with its weights, in a process without an engine."""
    name = str(dtype).removeprefix("torch.")
    room = {"max_num_batched_tokens": 8192, **FAMILIES[family].engine_args}
    limits = room.get("limit_mm_per_prompt", {})
    if "audio" in limits and "image" in limits:
        room["limit_mm_per_prompt"] = {"audio": 2, "image": 0, "video": 0}
    # A model that is freed while another one is traced breaks the trace: the finalizer
    # of vLLM's linear layers on CPU runs an operation.
    gc.collect()
    with tower_context(checkpoint, **{**room, "dtype": name, **args}) as config:
        loaded = load_model(config)
        FAMILIES[family].mend_model(loaded)
        yield config, loaded


def batches(family: str) -> list[Sequence[Any]]:
    found = (
        FAMILIES[family].samples if FAMILIES[family].modality != "audio" else SECONDS
    )
    if family in ALONE:
        return [(item,) for batch in found for item in batch]
    return list(found)


def encode(config: VllmConfig, family: str, loaded: nn.Module) -> Outputs:
    outputs = []
    for batch in batches(family):
        requests = [FAMILIES[family].request([item]) for item in batch]
        given = in_dtype(embed_inputs(config, requests), config.model_config.dtype)
        with torch.inference_mode():
            outputs.append(list(loaded.embed_multimodal(**given)))
    return outputs


def in_dtype(x: Any, dtype: torch.dtype) -> Any:
    """All tensors of floating point in it."""
    if isinstance(x, dict):
        return {name: in_dtype(value, dtype) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [in_dtype(value, dtype) for value in x]
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


if __name__ == "__main__":
    _, _family, _checkpoint, _dtype, _file = sys.argv
    with model(_family, Path(_checkpoint), getattr(torch, _dtype)) as (_config, _model):
        torch.save(encode(_config, _family, _model), _file)
