# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""CUDA graphs of audio encoders: vLLM's manager, its buffers, its packing, on CPU.

The graphs are stand-ins, which fail if a replay would use a value of the capture. Every
buffer is full of NaN before a replay.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsEncoderCudaGraph
from vllm.v1.worker import encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.cuda_graphs import StandIn, cuda_graphs_on_cpu
from mmc_testing.engine import (
    batch_items,
    embed_inputs,
    load_model,
    process_items,
    tower_context,
)
from mmc_testing.parity import assert_close
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.counters import counters
from vllm_mmc.demo import media
from vllm_mmc.encoder import audio_graphs

ARCHITECTURES = {entry.family: entry.architecture for entry in CATALOG}
BUDGETS: dict[str, list[int]] = {
    "whisper": [1500, 3000],
    "qwen3_asr": [26, 104, 400],
    "qwen2_audio": [30, 200, 760],
    "audioflamingo3": [30, 200, 760],
    "qwen2_5_omni": [30, 200, 760],
    "ultravox": [8, 40, 190],
    "kimi_audio": [15, 100, 380],
    "moss_transcribe_diarize": [400, 1200],
    "qwen3_omni": [26, 104, 400],
}
"""Family -> budgets, of which the largest is too small for some calls."""
FEW = ("whisper", "qwen3_asr", "qwen2_audio")
GRAPHS = [
    pytest.param(family, marks=() if family in FEW else pytest.mark.slow)
    for family in BUDGETS
]
ON = {"compile_mm_encoder": True, "cudagraph_mm_encoder": True}


@dataclass
class Graphs:
    """A model whose encoder is captured.

    Attributes:
        clip: What vLLM's processor makes of speech of so many seconds.
    """

    model: nn.Module
    manager: EncoderCudaGraphManager
    stand_in: StandIn
    clip: Callable[[float], Any]

    def batch(self, *seconds: float) -> dict[str, Any]:
        return batch_items([item for s in seconds for item in self.clip(s)])

    def embed(self, *seconds: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """These clips together: by the manager, and eager."""
        batch = self.batch(*seconds)
        with torch.inference_mode():
            found = self.manager.execute(batch)
            return found, list(self.model.embed_multimodal(**batch))

    def assert_equal(self, *seconds: float) -> None:
        for s, found, expected in zip(seconds, *self.embed(*seconds), strict=True):
            # Products of another height add up in another order.
            assert_close(f"{s} s of {seconds}", found, expected, ratio=1e-5)


def context(
    family: str, checkpoint: Path, *, additional_config: Any = None, **compilation: Any
) -> Any:
    args = {"max_num_batched_tokens": 4608, **FAMILIES[family].engine_args}
    if additional_config is not None:
        args["additional_config"] = additional_config
    config = {"encoder_cudagraph_token_budgets": BUDGETS[family], **ON, **compilation}
    return tower_context(
        checkpoint,
        compile_mm_encoder=config.pop("compile_mm_encoder"),
        compilation_config=config,
        dtype="float32",
        **args,
    )


def load(config: VllmConfig, family: str) -> nn.Module:
    """Regions run eager, which is quick; test_runner_v2.py has them compiled."""
    model = load_model(config)
    FAMILIES[family].mend_model(model)
    for module in model.modules():
        if hasattr(module, "_mmc_shared_graph"):
            module.do_not_compile = True
    return model


@contextlib.contextmanager
def captured(config: VllmConfig, family: str, model: nn.Module) -> Iterator[Graphs]:
    @functools.cache
    def clip(seconds: float) -> Any:
        return process_items(config, FAMILIES[family].request([seconds]))

    with cuda_graphs_on_cpu() as stand_in:
        device = torch.device("cpu")
        manager = EncoderCudaGraphManager(config, device, torch.float32, model)
        manager.capture("pool")
        yield Graphs(model, manager, stand_in, clip)


@pytest.mark.parametrize("off", ON)
def test_without_both_switches_as_stock(off: str, qwen3_asr: Path) -> None:
    with context("qwen3_asr", qwen3_asr, **{off: False}) as config:
        assert not isinstance(load_model(config), SupportsEncoderCudaGraph)


def test_vision_graphs_stay_those_of_stock(minicpmo: Path) -> None:
    """vLLM's manager takes no second encoder beside one that has capture axes."""
    args = FAMILIES["minicpmo"].engine_args
    with tower_context(
        minicpmo,
        compile_mm_encoder=True,
        compilation_config={"cudagraph_mm_encoder": True},
        **args,
    ) as config:
        model = load_model(config)
        assert isinstance(model, SupportsEncoderCudaGraph)
        assert "audio" not in model.get_encoder_cudagraph_config().modalities


def test_precomputed_embeddings_run_eager(qwen2_audio: Path) -> None:
    """In stock such a batch ends in a KeyError."""
    with context("qwen2_audio", qwen2_audio) as config:
        model = load(config, "qwen2_audio")
        width = config.model_config.get_inputs_embeds_size()
        with captured(config, "qwen2_audio", model) as graphs:
            for embeds in (torch.randn(2, 5, width), [torch.randn(3, width)]):
                with torch.inference_mode():
                    found = graphs.manager.execute({"audio_embeds": embeds})
                assert all(map(torch.equal, found, embeds)) and len(found)
            assert not graphs.stand_in.replays


def test_budgets_are_warmed_and_sizes_logged(qwen2_audio: Path) -> None:
    """Also those beyond what a call of eager can have, and sizes of their own."""
    sizes = {"compile_sizes": [60], "log_shapes_interval": 1000}
    with context(
        "qwen2_audio", qwen2_audio, additional_config={"vllm_mmc": sizes}
    ) as config:
        model = load(config, "qwen2_audio")
        shapes = model.audio_encoder.encoder_shapes
        shapes.limit = 1000
        warmed = model.warm_up_sizes(model.audio_encoder)
        ranges = {shapes.bounds(size).range for size in warmed}
        why_not = audio_graphs._why_no_graph
        assert why_not(model.audio_encoder) is None
        platform = mock.Mock(is_cuda_alike=lambda: True)
        with mock.patch.object(audio_graphs, "current_platform", platform):
            assert "TORCH_SDPA" in str(why_not(model.audio_encoder))
        tokens = [2 * budget for budget in BUDGETS["qwen2_audio"]]
        assert {shapes.bounds(size).range for size in tokens} <= ranges
        assert ranges == {(60, 60), (1, 1000), None}
        with captured(config, "qwen2_audio", model) as graphs:
            log = mock.patch.object(shapes.log, "record")
            with log as record, torch.inference_mode():
                graphs.manager.execute(graphs.batch(1.0, 3.0))
            # 1 s and 3 s of speech, of 50 tokens each second, in one replay. The
            # stand-in runs the body, which records the size of the graph.
            assert record.mock_calls == [mock.call(200), mock.call(400)]


def test_two_encoders_by_paths(qwen2_5_omni: Path) -> None:
    """Speech, and pictures by Qwen2.5-VL's graphs, which stock lacks for this model."""
    family = FAMILIES["qwen2_5_omni"]
    pictures = [
        {
            "prompt": family.prompt("Who?", images=1),
            "multi_modal_data": {"image": [media.photograph_at(*size)]},
        }
        for size in ((280, 336), (224, 224), (504, 588))  # 120, 64, 378 embeddings
    ]
    budgets = {"encoder_cudagraph_token_budgets": [70, 200]}
    with context("qwen2_5_omni", qwen2_5_omni, **budgets) as config:
        model = load(config, "qwen2_5_omni")
        with captured(config, "qwen2_5_omni", model) as graphs:
            assert graphs.stand_in.captures == 4, "two budgets, two encoders"
            manager = graphs.manager
            assert manager.supports_modality("image")
            graphs.assert_equal(3.0, 1.0, 30.0)
            assert (graphs.stand_in.replays, manager.graph_misses) == (1, 1)
            seen = embed_inputs(config, pictures)
            with torch.inference_mode():
                found = manager.execute(seen)
                expected = model.embed_multimodal(**seen)
            for item, wanted in zip(found, expected, strict=True):
                assert_close("picture", item, wanted, ratio=1e-5)
            assert (graphs.stand_in.replays, manager.graph_misses) == (2, 2)


# What follows shares one model of each family, so what loads another stands above.


@pytest.fixture(scope="module", params=GRAPHS)
def graphs(request: pytest.FixtureRequest) -> Iterator[Graphs]:
    family = request.param
    with context(family, request.getfixturevalue(family)) as config:
        model = load(config, family)
        with captured(config, family, model) as found:
            yield found


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.one_of(
            st.floats(0.2, 3).map(lambda s: round(s, 2)),
            st.floats(3, 30).map(lambda s: round(s, 1)),
        ),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
def test_equals_eager(
    graphs: Graphs, seconds: list[float], data: st.DataObject
) -> None:
    """Of any lengths, with any of the budgets: what fits into none runs eager."""
    budgets = graphs.manager.token_budgets
    chosen = data.draw(st.sets(st.sampled_from(budgets), min_size=1))
    with mock.patch.dict(graphs.manager.path_token_budgets, audio=sorted(chosen)):
        graphs.assert_equal(*seconds)


def test_replays_are_counted(graphs: Graphs) -> None:
    manager, stand_in = graphs.manager, graphs.stand_in
    assert stand_in.captures == manager.get_num_graphs_to_capture()
    hits, replays, counted = manager.graph_hits, stand_in.replays, counters.replays
    graphs.assert_equal(1.0)
    assert (manager.graph_hits, stand_in.replays) == (hits + 1, replays + 1)
    graphs.assert_equal(*[0.3, 1.0] * manager.max_batch_size)
    assert stand_in.replays > replays + 2
    assert counters.replays - counted == stand_in.replays - replays


def test_what_no_graph_holds_runs_eager(graphs: Graphs) -> None:
    replays, misses = graphs.stand_in.replays, graphs.manager.graph_misses
    too_small = {"audio": [1]}
    with mock.patch.dict(graphs.manager.path_token_budgets, too_small):
        graphs.assert_equal(0.3, 7.7)
    assert graphs.stand_in.replays == replays
    assert graphs.manager.graph_misses == misses + 2


def test_of_two_ranks_each_encodes_a_share(graphs: Graphs) -> None:
    """vLLM's own sharding, gathering and order, without processes."""
    seconds = (7.7, 1.0, 3.0, 0.3, 1.0)
    batch, expected = graphs.batch(*seconds), graphs.embed(*seconds)[1]
    parts: list[torch.Tensor] = []

    def found(rank: int, gather: Any) -> list[torch.Tensor]:
        two = {
            "get_tensor_model_parallel_world_size": lambda: 2,
            "get_tensor_model_parallel_rank": lambda: rank,
            "tensor_model_parallel_all_gather": gather,
        }
        with (
            mock.patch.multiple(encoder_cudagraph, **two),
            mock.patch.object(graphs.manager, "use_dp", True),
            torch.inference_mode(),
        ):
            return graphs.manager.execute(batch)

    def note(x: torch.Tensor, dim: int) -> torch.Tensor:
        parts.append(x)
        return torch.cat([x, x], dim)

    for rank in range(2):
        found(rank, note)
    for rank in range(2):
        ours = found(rank, lambda _, dim: torch.cat(parts, dim))
        for item, wanted in zip(ours, expected, strict=True):
            assert_close(f"rank {rank}", item, wanted, ratio=1e-5)
    # More ranks than items: one has nothing to encode.
    assert not graphs.manager._execute_local(
        graphs.model.select_encoder_cudagraph_items(batch, [])
    )
