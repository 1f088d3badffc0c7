# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Encoder CUDA graphs and precomputed embeddings raise. Exit status 0: they do not.

vLLM's encoder runner, graph manager and Qwen2.5-VL's methods, with a model that is left
out: no graph is replayed, because an image that comes as embeddings needs none.
"""

import sys
from types import SimpleNamespace

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration as Qwen,
)
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
from vllm.v1.worker.encoder_cudagraph_defs import EncoderCudaGraphConfig
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner


class Model:
    """Qwen2.5-VL's own methods around encoder graphs."""

    visual = SimpleNamespace(spatial_merge_size=2)
    get_input_modality = Qwen.get_input_modality
    _get_pixel_values_by_modality = Qwen._get_pixel_values_by_modality
    _get_grid_thw_by_modality = Qwen._get_grid_thw_by_modality
    get_encoder_cudagraph_item_specs = Qwen.get_encoder_cudagraph_item_specs
    select_encoder_cudagraph_items = Qwen.select_encoder_cudagraph_items

    def embed_multimodal(self, **kwargs: torch.Tensor) -> list[torch.Tensor]:
        return [kwargs["image_embeds"]]


def main() -> int:
    manager = object.__new__(EncoderCudaGraphManager)
    manager.model = Model()
    manager.config = EncoderCudaGraphConfig(["image", "video"], [], out_hidden_size=8)
    manager.token_budgets = [64]
    manager.path_token_budgets = {"default": [64]}
    manager.budget_graphs = {"default": {}}
    manager.max_batch_size, manager.use_dp, manager._capture_axes = 8, False, ()
    manager.graph_hits = manager.graph_misses = 0
    manager.log_stats_interval, manager.graph_pool = 100, "captured"
    runner = EncoderRunner(
        model=manager.model,
        max_num_tokens=64,
        hidden_size=8,
        encoder_cache=EncoderCache(),
        dtype=torch.float32,
        device=torch.device("cpu"),
        cudagraph_manager=manager,
    )
    embeds, grid = torch.randn(4, 8), torch.tensor([[1, 4, 4]])
    (item,) = MultiModalKwargsItems.from_hf_inputs(
        {"image_embeds": embeds, "image_grid_thw": grid},
        {
            "image_embeds": MultiModalFieldConfig.flat_from_sizes(
                "image", torch.tensor([4])
            ),
            "image_grid_thw": MultiModalFieldConfig.batched("image"),
        },
    )["image"]
    try:
        (out,) = runner.execute_mm_encoder([("image", item)])
    except KeyError as error:
        print(f"an image as embeddings, with encoder graphs: KeyError {error}")
        return 1
    print("an image as embeddings, with encoder graphs: its embeddings are used")
    return int(not torch.equal(out, embeds))


if __name__ == "__main__":
    sys.exit(main())
