# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Encoders without a file in this package: stock eager against surveyed and compiled.

Blocks of the published size (the defaults of the config classes), few of them. Both
sides have equal weights and take turns; before anything is timed their outputs are
compared. Ratios below 1 are faster than stock.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import transformers
from harness import (
    default_output,
    environment,
    print_table,
    spread,
    write_json,
)
from transformers.models.gemma4.configuration_gemma4 import (
    Gemma4AudioConfig,
    Gemma4VisionConfig,
)
from transformers.models.glm4v.configuration_glm4v import (
    Glm4vTextConfig,
    Glm4vVisionConfig,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from vllm.config import VllmConfig
from vllm.utils.torch_utils import set_default_torch_dtype

from tests.encoder.tower import config, prepare, tower_config
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.counters import counters
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.encoder.model import attach_regions
from vllm_mmc.encoder.survey import survey
from vllm_mmc.models import gemma_audio
from vllm_mmc.models import parakeet as parakeet_model

EXCHANGED = gemma_audio.ENCODER_REWRITES | parakeet_model.ENCODER_REWRITES
Inputs = tuple[tuple[Any, ...], dict[str, Any]]

SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}


def siglip(layers: int) -> nn.Module:
    from vllm.model_executor.models.siglip import SiglipVisionModel

    config = transformers.SiglipVisionConfig(
        **SO400M, num_hidden_layers=layers, image_size=384, patch_size=14
    )
    return SiglipVisionModel(config)


def clip(layers: int) -> nn.Module:
    from vllm.model_executor.models.clip import CLIPVisionModel

    config = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=16,
        num_hidden_layers=layers,
        image_size=336,
        patch_size=14,
    )
    return CLIPVisionModel(config)


def qwen2_vl(layers: int) -> nn.Module:
    from vllm.model_executor.models.qwen2_vl import Qwen2VisionTransformer

    return Qwen2VisionTransformer(Qwen2VLVisionConfig(depth=layers))


def qwen3_vl(layers: int) -> nn.Module:
    from vllm.model_executor.models.qwen3_vl import Qwen3_VisionTransformer

    config = Qwen3VLVisionConfig(depth=layers, deepstack_visual_indexes=[0])
    return Qwen3_VisionTransformer(config)


def pixtral_hf(layers: int) -> nn.Module:
    from vllm.model_executor.models.pixtral import PixtralHFVisionModel

    return PixtralHFVisionModel(
        transformers.PixtralVisionConfig(num_hidden_layers=layers)
    )


def intern_vit(layers: int) -> nn.Module:
    from vllm.model_executor.models.intern_vit import InternVisionModel

    return InternVisionModel(
        config(
            hidden_size=1024,
            intermediate_size=4096,
            num_attention_heads=16,
            num_hidden_layers=layers,
            image_size=448,
            patch_size=14,
            num_channels=3,
            norm_type="layer_norm",
            layer_norm_eps=1e-6,
            hidden_act="gelu",
            initializer_factor=0.1,
            qkv_bias=True,
            qk_normalization=False,
        )
    )


def idefics2(layers: int) -> nn.Module:
    from vllm.model_executor.models.idefics2_vision_model import (
        Idefics2VisionTransformer,
    )

    return Idefics2VisionTransformer(
        Idefics2VisionConfig(
            **SO400M, num_hidden_layers=layers, image_size=980, patch_size=14
        )
    )


def moonvit(layers: int) -> nn.Module:
    from vllm.model_executor.models.moonvit import MoonVitPretrainedModel
    from vllm.transformers_utils.configs.moonvit import MoonViTConfig

    return MoonVitPretrainedModel(
        MoonViTConfig(**SO400M, num_hidden_layers=layers, patch_size=14)
    )


def glm4_1v(layers: int) -> nn.Module:
    from vllm.model_executor.models.glm4_1v import Glm4vVisionTransformer

    return Glm4vVisionTransformer(Glm4vTextConfig(), Glm4vVisionConfig(depth=layers))


def gemma4_vision(layers: int) -> nn.Module:
    config = Gemma4VisionConfig(num_hidden_layers=layers)
    return transformers.AutoModel.from_config(config)


def gemma4_audio(layers: int) -> nn.Module:
    config = Gemma4AudioConfig(num_hidden_layers=layers)
    return transformers.AutoModel.from_config(config)


def parakeet(layers: int) -> nn.Module:
    config = transformers.ParakeetEncoderConfig(num_hidden_layers=layers)
    return transformers.ParakeetEncoder(config)


def pictures(size: int, count: int) -> Inputs:
    return (torch.randn(count, 3, size, size),), {}


def grid(width: int, rows: int, columns: int) -> Inputs:
    return (torch.randn(rows * columns, width), [[1, rows, columns]]), {}


def picture_list(height: int, width: int) -> Inputs:
    return ([torch.randn(3, height, width)],), {}


def masked(size: int) -> Inputs:
    mask = torch.ones(1, size // 14, size // 14, dtype=torch.bool)
    return (torch.randn(1, 3, size, size),), {"patch_attention_mask": mask}


def patch_squares(rows: int, columns: int) -> Inputs:
    sizes = torch.tensor([(rows, columns)])
    return (torch.randn(rows * columns, 3, 14, 14), sizes), {}


def positions(rows: int, columns: int) -> Inputs:
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([x, y], -1).reshape(1, -1, 2)
    return (torch.randn(1, rows * columns, 3 * 16 * 16), places), {}


def mel(frames: int) -> Inputs:
    keep = torch.ones(1, frames, dtype=torch.bool)
    return (torch.randn(1, frames, 128), keep), {}


def mel_by_name(frames: int) -> Inputs:
    keep = torch.ones(1, frames, dtype=torch.bool)
    return (), {"input_features": torch.randn(1, frames, 80), "attention_mask": keep}


# Encoder -> how it is built, and inputs by what they are called in the table.
ENCODERS: dict[str, tuple[Callable[[int], nn.Module], dict[str, Any]]] = {
    "siglip": (siglip, {"1 image": (pictures, 384, 1), "2": (pictures, 384, 2)}),
    "clip": (clip, {"1 image": (pictures, 336, 1), "4": (pictures, 336, 4)}),
    "qwen2_vl": (
        qwen2_vl,
        {"256 patches": (grid, 1176, 16, 16), "1024": (grid, 1176, 32, 32)},
    ),
    "qwen3_vl": (
        qwen3_vl,
        {"256 patches": (grid, 1536, 16, 16), "1024": (grid, 1536, 32, 32)},
    ),
    "pixtral_hf": (
        pixtral_hf,
        {"256 patches": (picture_list, 256, 256), "1024": (picture_list, 512, 512)},
    ),
    "intern_vit": (intern_vit, {"1 tile": (pictures, 448, 1), "4": (pictures, 448, 4)}),
    "idefics2": (idefics2, {"448 pixels": (masked, 448), "980": (masked, 980)}),
    "moonvit": (
        moonvit,
        {"256 patches": (patch_squares, 16, 16), "1024": (patch_squares, 32, 32)},
    ),
    "glm4_1v": (
        glm4_1v,
        {"256 patches": (grid, 1176, 16, 16), "1024": (grid, 1176, 32, 32)},
    ),
    "gemma4_vision": (
        gemma4_vision,
        {"576 patches": (positions, 24, 24), "2304": (positions, 48, 48)},
    ),
    "gemma4_audio": (gemma4_audio, {"3 s": (mel, 300), "10 s": (mel, 1000)}),
    "parakeet": (parakeet, {"3 s": (mel_by_name, 300), "10 s": (mel_by_name, 1000)}),
}


def make(spec: tuple[Any, ...], dtype: torch.dtype) -> Inputs:
    torch.manual_seed(0)
    args, kwargs = spec[0](*spec[1:])

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(part) for part in value]
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return tuple(map(cast, args)), {name: cast(v) for name, v in kwargs.items()}


def tensor(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    hidden = getattr(output, "last_hidden_state", None)
    return tensor(output[0] if hidden is None else hidden)


def measure(
    name: str, layers: int, rounds: int, dtype: torch.dtype, config: VllmConfig
) -> list[dict[str, Any]]:
    build, sizes = ENCODERS[name]
    with set_default_torch_dtype(dtype):
        stock = prepare(build(layers))
        ours = build(layers)
        ours = install(ours, EncoderPlan(classes=EXCHANGED), config)
        prepare(ours)
    batches = {label: make(spec, dtype) for label, spec in sizes.items()}
    # Also one size more, without which a survey finds nothing that varies.
    calls = [partial(ours, *args, **kwargs) for args, kwargs in batches.values()]
    before = counters.graphs, counters.compile_seconds
    found = survey(ours, calls)
    attach_regions(ours, found, config)
    for call in calls:
        call()
    results = []
    for label, (args, kwargs) in batches.items():
        outputs = [tensor(side(*args, **kwargs)).float() for side in (stock, ours)]
        difference = (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        for _ in range(rounds):
            for side, tower in (("stock", stock), ("ours", ours)):
                begun = time.perf_counter()
                tower(*args, **kwargs)
                seconds[side].append(time.perf_counter() - begun)
        medians = {side: statistics.median(taken) for side, taken in seconds.items()}
        results.append(
            {
                "encoder": name,
                "size": label,
                "dtype": str(dtype).removeprefix("torch."),
                "regions": {r.spec.name: len(r.paths) for r in found.regions},
                "graphs": counters.graphs - before[0],
                "compile_seconds": counters.compile_seconds - before[1],
                "largest_relative_difference": difference.item(),
                "seconds": {side: spread(taken) for side, taken in seconds.items()},
                "ours_to_stock": medians["ours"] / medians["stock"],
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", action="append", choices=sorted(ENCODERS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    results: list[dict[str, Any]] = []
    with tower_config(compile_mm_encoder=True) as config, stock_compile_off(config):
        config.model_config.dtype = dtype
        for name in options.encoder or ENCODERS:
            print(name, file=sys.stderr)
            with torch.inference_mode():
                results += measure(name, options.layers, options.rounds, dtype, config)
    print_table(
        ["encoder", "size", "dtype", "stock ms", "ours ms", "ours / stock", "graphs"],
        [
            [
                row["encoder"],
                row["size"],
                row["dtype"],
                row["seconds"]["stock"]["median"] * 1000,
                row["seconds"]["ours"]["median"] * 1000,
                row["ours_to_stock"],
                row["graphs"],
            ]
            for row in results
        ],
    )
    write_json(
        options.json or default_output("surveyed", options.dtype),
        {
            "environment": environment(),
            "layers": options.layers,
            "rounds": options.rounds,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
