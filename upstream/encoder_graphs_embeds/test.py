# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/v1/worker/test_encoder_runner.py."""

from unittest.mock import MagicMock, patch

import pytest
import torch
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
from vllm.v1.worker.encoder_cudagraph_defs import (
    EncoderCudaGraphConfig,
    EncoderItemSpec,
)
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner


@pytest.mark.parametrize("use_dp", [False, True])
@pytest.mark.parametrize("modality", ["image", "video"])
def test_encoder_graph_leaves_precomputed_embeddings_alone(modality, use_dp):
    """A graph needs the raw input, which a request with embeddings does not have."""

    def select(mm_kwargs, indices):
        return {"pixel_values": mm_kwargs["pixel_values"][indices]}

    model = MagicMock()
    model.get_encoder_cudagraph_item_specs.return_value = [EncoderItemSpec(16, 4)]
    model.select_encoder_cudagraph_items.side_effect = select
    model.embed_multimodal.side_effect = lambda **kwargs: kwargs[f"{modality}_embeds"]
    manager = object.__new__(EncoderCudaGraphManager)
    manager.model = model
    manager.config = EncoderCudaGraphConfig(["image", "video"], [], out_hidden_size=8)
    manager.token_budgets = [64]
    manager.path_token_budgets = {"default": [64]}
    manager.budget_graphs = {"default": {}}
    manager.max_batch_size = 8
    manager.use_dp = use_dp
    manager._capture_axes = ()
    manager.graph_hits = manager.graph_misses = 0
    manager.log_stats_interval = 100
    manager.graph_pool = MagicMock()  # captured
    runner = EncoderRunner(
        model=model,
        max_num_tokens=64,
        hidden_size=8,
        encoder_cache=EncoderCache(),
        dtype=torch.float32,
        device=torch.device("cpu"),
        cudagraph_manager=manager,
    )
    embeds = torch.randn(4, 8)
    batch = {f"{modality}_embeds": [embeds], f"{modality}_grid_thw": [[1, 4, 4]]}
    parallel = "vllm.v1.worker.encoder_cudagraph.get_tensor_model_parallel"
    with (
        patch(
            "vllm.v1.worker.gpu.mm.encoder_runner.group_and_batch_mm_kwargs",
            return_value=[(modality, 1, batch)],
        ),
        patch(f"{parallel}_world_size", return_value=2),
        patch(f"{parallel}_rank", return_value=0),
    ):
        (out,) = runner.execute_mm_encoder([(modality, MagicMock())])
    assert out is embeds
    assert manager.graph_hits == manager.graph_misses == 0
