# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2.5-VL's compiled vision encoder without an engine, for a stack of your own.

    python examples/custom_serving.py CHECKPOINT

CHECKPOINT is a directory with safetensors files.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor
from vllm.config import set_current_vllm_config
from vllm.distributed import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import process_weights_after_loading

from vllm_mmc.compilation.counters import counters
from vllm_mmc.demo.media import photograph_at
from vllm_mmc.models.qwen2_5_vl import CompiledQwen2_5_VisionTransformer


def build(checkpoint: str) -> CompiledQwen2_5_VisionTransformer:
    args = EngineArgs(
        model=checkpoint,
        dtype="float32",
        compilation_config={"compile_mm_encoder": True},
    )
    vllm_config = args.create_engine_config()
    device = vllm_config.device_config.device
    # What every layer of vLLM needs: a current configuration and process groups.
    with set_current_vllm_config(vllm_config):
        init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, backend="gloo")
        ensure_model_parallel_initialized(1, 1)
        vision_config = vllm_config.model_config.hf_config.vision_config
        with device:
            encoder = CompiledQwen2_5_VisionTransformer(vision_config)
    encoder.load_weights(visual_weights(Path(checkpoint)))
    process_weights_after_loading(encoder, vllm_config.model_config, device)
    return encoder


def visual_weights(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names are those of the checkpoint, without "visual."."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if name.startswith("visual."):
                yield name.removeprefix("visual."), tensor


def main(checkpoint: str) -> None:
    encoder = build(checkpoint)
    # Pixels are [patches, 3 * 2 * 14 * 14]; a grid is [t, h, w] in patches.
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    images = [photograph_at(336, 224), photograph_at(112, 140)]
    inputs = processor(images, return_tensors="pt")
    grids = inputs["image_grid_thw"].tolist()

    metadata = encoder.prepare_encoder_metadata(grids)  # on the host, before any graph
    with torch.inference_mode():
        embeddings = encoder(inputs["pixel_values"], None, encoder_metadata=metadata)
    print(f"grids {grids}: embeddings {list(embeddings.shape)}")
    print(f"{counters.graphs + counters.artifact_loads} graphs")


if __name__ == "__main__":
    main(*sys.argv[1:])
