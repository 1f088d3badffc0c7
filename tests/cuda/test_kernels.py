# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""How many kernels a compiled region launches on CUDA, from the code that Inductor
writes for it here."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmc_testing.as_on_cuda import as_on_cuda
from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, stock_class, tower_context
from mmc_testing.triton_code import Kernels, kernels_on_cuda
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.decorators import is_compiled_class
from vllm_mmc.encoder.interfaces import CompiledEncoder

ATTENTION = {"vllm_mmc.flash_attn_maxseqlen_wrapper.default": 1}
# Module, class of a region -> kernels that Inductor generates, products of cuBLAS,
# operators that stay as they are. More of the first means that something is not fused
# any more, fewer that something is: both are worth a look.
KERNELS = {
    "vllm_mmc.models.qwen2_5_vl": {
        "CompiledQwen2_5_VisionPatchEmbed": (1, 1, {}),
        "CompiledQwen2_5_VisionBlock": (5, 4, ATTENTION),
        "CompiledQwen2_5_VisionPatchMerger": (2, 2, {}),
    },
    "vllm_mmc.models.llama4": {
        "CompiledLlama4UnfoldConvolution": (1, 1, {}),
        "CompiledLlama4VisionEncoderLayer": (5, 4, ATTENTION),
        "CompiledLlama4VisionPixelShuffleMLP": (3, 2, {}),
        "CompiledLlama4MultiModalProjector": (0, 1, {}),
    },
    "vllm_mmc.models.whisper": {"CompiledWhisperEncoderLayer": (4, 4, ATTENTION)},
    "vllm_mmc.models.qwen3_asr": {
        "CompiledQwen3OmniMoeAudioEncoderLayer": (4, 4, ATTENTION)
    },
}
Call = tuple[nn.Module, dict[str, Any]]


@contextmanager
def recorded(model: nn.Module, classes: Any) -> Iterator[dict[str, Call]]:
    """The first call of a module of each class: the module, and name -> argument."""
    calls: dict[str, Call] = {}

    def watch(module: nn.Module) -> None:
        forward = module.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(forward).bind(*args, **kwargs).arguments
            calls.setdefault(type(module).__name__, (module, dict(given)))
            return forward(*args, **kwargs)

        module.forward = noted

    watched = [module for module in model.modules() if classes(type(module))]
    for module in watched:
        module.do_not_compile = True
        watch(module)
    with torch.inference_mode():
        yield calls
    for module in watched:
        del module.forward


def as_recorded(kernels: Kernels) -> tuple[int, int, dict[str, int]]:
    return kernels.generated, sum(kernels.products.values()), dict(kernels.others)


@pytest.mark.forked
@pytest.mark.parametrize("module", KERNELS)
def test_of_regions(module: str, request: pytest.FixtureRequest) -> None:
    family = next(
        entry.family
        for entry in CATALOG
        if (entry.mixin or entry.model).startswith(f"{module}:")
    )
    checkpoint = request.getfixturevalue(family)
    found = {}
    with (
        as_on_cuda(),
        tower_context(
            checkpoint,
            compile_mm_encoder=True,
            dtype="bfloat16",
            **FAMILIES[family].engine_args,
        ) as vllm_config,
    ):
        model = load_model(vllm_config)
        with recorded(model, is_compiled_class) as calls:
            for encoder in model.modules():
                if isinstance(encoder, CompiledEncoder):
                    tokens = 2 * max(encoder.token_multiple, 24)
                    model.run_dummy_encoder(encoder, tokens)
        for name, (region, arguments) in calls.items():
            found[name] = as_recorded(kernels_on_cuda(region, arguments))
    assert found == KERNELS[module]


@pytest.mark.forked
def test_complex_angles_are_not_fused(llama4: Path) -> None:
    """Stock's block of Llama4 launches more than ours: the table above can tell."""
    with (
        as_on_cuda(),
        tower_context(
            llama4,
            dtype="bfloat16",
            **FAMILIES["llama4"].engine_args,
            **stock_class("Llama4ForConditionalGeneration"),
        ) as vllm_config,
    ):
        tower = load_model(vllm_config).vision_model
        block = type(tower.model.layers[0])
        with recorded(tower, lambda cls: cls is block) as calls:
            size = tower.image_size
            tower(torch.zeros(2, 3, size, size, dtype=torch.bfloat16))
        ((module, arguments),) = calls.values()
        stock = kernels_on_cuda(module, arguments)
    ours, *_ = KERNELS["vllm_mmc.models.llama4"]["CompiledLlama4VisionEncoderLayer"]
    assert stock.generated > ours
    assert any("complex" in name for name in stock.others), stock
