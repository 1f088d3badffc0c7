# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Patched encoders equal those of the installed vLLM, eager and compiled.

Compiled is: as many graphs as structures, the other modules load them, no graph break,
and no compilation for any further size.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from encode import Outputs, encode, model
from torch import nn
from torch._dynamo.utils import counters as dynamo
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationMode

from mmc_testing.checkpoints import FAMILIES as RECIPES
from mmc_testing.parity import allowance, assert_close, rms_ratio

DEPTH = 4
STRUCTURES = {"llama4": 4}
"""Family -> regions that differ; by default the layer is the only one."""
FAMILIES = (
    "whisper",
    "llama4",
    "qwen3_asr",
    "qwen2_audio",
    "audioflamingo3",
    "ultravox",
    "voxtral",
    "kimi_audio",
    "moss_transcribe_diarize",
    "qwen3_omni",
)
DEFAULT = FAMILIES[:5]
FLOAT32 = torch.float32, CompilationMode.VLLM_COMPILE
BFLOAT16 = torch.bfloat16, CompilationMode.DYNAMO_TRACE_ONCE

Stock = Callable[[str, torch.dtype], Outputs]
Checkpoint = Callable[[str], Path]

pytestmark = [
    pytest.mark.usefixtures("cold_cache"),
    pytest.mark.parametrize(
        ("family", "dtype", "mode"),
        [
            pytest.param(
                family,
                *pair,
                id=f"{family}, {pair[0]}, mode {pair[1]}",
                marks=() if family in DEFAULT and pair == FLOAT32 else pytest.mark.slow,
            )
            for family in FAMILIES
            for pair in (FLOAT32, BFLOAT16)
        ],
    ),
]


def compare(found: Outputs, stock: Outputs, truth: Outputs) -> None:
    dtype = stock[0][0].dtype
    for batch, theirs, exact in zip(found, stock, truth, strict=True):
        for index, clip in enumerate(zip(batch, theirs, exact, strict=True)):
            allowed = allowance(reference=clip[1], truth=clip[2])
            assert_close(f"item {index}", clip[0], clip[2], ratio=allowed, dtype=dtype)


def test_equals_stock(
    family: str,
    dtype: torch.dtype,
    mode: CompilationMode,
    stock: Stock,
    checkpoint: Checkpoint,
) -> None:
    expected = stock(family, dtype)
    truth = stock(family, torch.float32) if dtype != torch.float32 else expected
    with compilation_counter.expect(num_models_seen=0):
        eager(family, checkpoint(family), expected, truth)
    structures = STRUCTURES.get(family, 1)
    dynamo.clear()
    with compilation_counter.expect(
        num_models_seen=structures + DEPTH - 1 + RECIPES[family].backbones_seen,
        num_aot_compiles=structures,
        num_aot_artifacts_saved=structures,
        num_aot_artifacts_loaded=DEPTH - 1,
    ):
        compiled(family, checkpoint(family), expected, truth, mode)
    assert dynamo["stats"]["unique_graphs"] == structures
    assert dynamo["graph_break"] == Counter()


def eager(family: str, checkpoint: Path, stock: Outputs, truth: Outputs) -> None:
    with model(family, checkpoint, stock[0][0].dtype) as (config, loaded):
        compare(encode(config, family, loaded), stock, truth)


def compiled(
    family: str,
    checkpoint: Path,
    stock: Outputs,
    truth: Outputs,
    mode: CompilationMode,
) -> None:
    on = {"compile_mm_encoder": True, "mode": mode}
    with model(family, checkpoint, stock[0][0].dtype, **on) as (config, loaded):
        compare(encode(config, family, loaded), stock, truth)
        swap_layers(loaded)
        swapped = encode(config, family, loaded)
    for found, expected in zip(swapped, truth, strict=True):
        assert rms_ratio(torch.cat(found), torch.cat(expected)) > 0.02


def swap_layers(loaded: nn.Module) -> None:
    """The comparison can fail: layers are far from interchangeable."""
    (layers,) = (
        module
        for name, module in loaded.named_modules()
        if isinstance(module, nn.ModuleList)
        and "language_model" not in name
        and "decoder" not in name
    )
    layers[2] = layers[0]
