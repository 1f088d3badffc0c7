# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Both model runners of vLLM encode the same, with CUDA graphs and without.

Model Runner V2, which vLLM has where Triton is, cannot serve on a CPU without
triton-cpu. The part of it that runs encoders can.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import VllmConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import MultiModalBudget
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.cuda_graphs import StandIn, cuda_graphs_on_cpu
from mmc_testing.engine import load_model, process_items, tower_context
from mmc_testing.parity import assert_close
from vllm_mmc.compilation.counters import counters

FAMILY = "qwen2_audio"
REQUESTS = {"first": [3.0, 0.3], "second": [30.0], "third": [7.7, 1.0, 12.5]}
DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(qwen2_audio: Path) -> Iterator[tuple[VllmConfig, nn.Module, StandIn]]:
    """Nothing has run yet."""
    assert FAMILY in str(qwen2_audio)
    budgets = [30, 200, 400]  # 30 s are 750 embeddings
    args = {
        **FAMILIES[FAMILY].engine_args,
        "max_num_batched_tokens": 2048,
        "limit_mm_per_prompt": {"audio": 3},
    }
    with (
        cuda_graphs_on_cpu() as stand_in,
        tower_context(
            qwen2_audio,
            compile_mm_encoder=True,
            compilation_config={
                "cudagraph_mm_encoder": True,
                "encoder_cudagraph_token_budgets": budgets,
            },
            dtype="float32",
            **args,
        ) as config,
    ):
        yield config, load_model(config), stand_in


def features(config: VllmConfig) -> dict[str, list[MultiModalFeatureSpec]]:
    """What the scheduler hands to a worker."""
    found = {}
    for request, seconds in REQUESTS.items():
        items = [
            item
            for s in seconds
            for item in process_items(config, FAMILIES[FAMILY].request([s]))
        ]
        found[request] = [
            MultiModalFeatureSpec(
                data=item,
                modality=modality,
                identifier=f"{request}-{i}",
                mm_position=PlaceholderRange(offset=0, length=1),
            )
            for i, (modality, item) in enumerate(items)
        ]
    return found


def encoder_runner(config: VllmConfig, model: Any, manager: Any) -> EncoderRunner:
    return EncoderRunner(
        model=model,
        max_num_tokens=config.scheduler_config.max_num_batched_tokens,
        hidden_size=config.model_config.get_inputs_embeds_size(),
        encoder_cache=EncoderCache(),
        dtype=torch.float32,
        device=DEVICE,
        cudagraph_manager=manager,
    )


def by_v2(runner: EncoderRunner, of: dict[str, Any]) -> dict[str, torch.Tensor]:
    for request, specs in of.items():
        runner.encoder_cache.add_request(request, specs)
    scheduled = {request: list(range(len(specs))) for request, specs in of.items()}
    names, items = runner.prepare_mm_inputs(scheduled)
    return dict(zip(names, runner.execute_mm_encoder(items), strict=True))


def by_v1(
    model: nn.Module, manager: Any, of: dict[str, Any]
) -> dict[str, torch.Tensor]:
    runner: Any = object.__new__(GPUModelRunner)
    vars(runner).update(
        model=model,
        device=DEVICE,
        encoder_cudagraph_manager=manager,
        encoder_cache={},
        requests={r: SimpleNamespace(mm_features=specs) for r, specs in of.items()},
        observability_config=None,
        lora_config=None,
        is_multimodal_pruning_enabled=False,
        requires_sequential_video_encoding=False,
        maybe_save_ec_to_connector=lambda *_: None,
    )
    scheduled: Any = SimpleNamespace(
        scheduled_encoder_inputs={r: range(len(specs)) for r, specs in of.items()},
        ec_manager_metadata=None,
        free_encoder_mm_hashes=[],
    )
    with torch.inference_mode():
        runner._execute_mm_encoder(scheduled)
    return runner.encoder_cache


def test_profile_warm_up_capture_serve(
    loaded: tuple[VllmConfig, nn.Module, StandIn],
) -> None:
    """In the order of V2. The profile run compiles, and nothing after it does."""
    config, model, stand_in = loaded
    manager = EncoderCudaGraphManager(config, DEVICE, torch.float32, model)
    runner = encoder_runner(config, model, manager)
    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY, enable_cache=False)
    dummies = budget.get_dummy_encoder_profile_inputs()
    with counters.expect(structures=1, graphs=1, fallbacks=0, recompiles=0):
        runner.profile_encoder_cache(dummies, budget)
    encoded = runner.encoder_cache.encoder_outputs
    assert len(encoded) == len(dummies) > 0
    assert not stand_in.replays, "nothing is captured yet"
    replayed = counters.replays
    runner.encoder_cache.reset_encoder_cache()

    with ExitStack() as stack:
        stack.enter_context(counters.expect(graphs=0, artifact_loads=0, fallbacks=0))
        with mock.patch.object(type(model), "forward", lambda *_: None):
            model()  # of the decoder; what comes before it warms the encoder up
        runner.capture()
        assert manager.is_captured() and stand_in.captures == 3
        given = features(config)
        plain = encoder_runner(config, model, None)
        found = {
            "V2": by_v2(plain, given),
            "V1": by_v1(model, None, given),
            "V2, graphs": by_v2(runner, given),
            "V1, graphs": by_v1(model, manager, given),
        }
    assert stand_in.replays == counters.replays - replayed > 2
    assert manager.graph_misses == 2, "30 s are beyond the largest budget"
    for name, items in found.items():
        assert items.keys() == found["V2"].keys() and len(items) == 6
        for item, expected in found["V2"].items():
            # Products of another height add up in another order.
            assert_close(f"{name}, {item}", items[item], expected, ratio=1e-5)
    for name in ("", ", graphs"):
        one, other = found[f"V1{name}"], found[f"V2{name}"]
        assert all(torch.equal(one[item], other[item]) for item in other)
