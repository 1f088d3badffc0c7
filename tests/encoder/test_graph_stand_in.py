# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The stand-in for CUDA graphs finds each kind of mistake, under vLLM's own manager."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.models.utils import scatter_output_slices
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager
from vllm.v1.worker.encoder_cudagraph_defs import (
    EncoderCudaGraphCaptureInputs,
    EncoderCudaGraphConfig,
    EncoderCudaGraphReplayBuffers,
    EncoderItemSpec,
)

from mmc_testing.cuda_graphs import GraphError, cuda_graphs_on_cpu
from vllm_mmc.encoder.audio_graphs import CU_SEQLENS, Buffer

LENGTHS = [3, 5, 1, 16, 40]  # the last one is beyond the largest budget
Values = dict[str, torch.Tensor]


class Packed(torch.nn.Module):
    """Adds to each row the sum of its item, and projects. Subclasses are wrong."""

    supports_encoder_cudagraph = True
    padding: dict[str, Any] = {"x": Buffer(), "cu_seqlens": CU_SEQLENS}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 6)

    def buffers(self, x: torch.Tensor, lengths: list[int]) -> Values:
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        longest = torch.full((), max(lengths), dtype=torch.int32)
        return {"x": x, "cu_seqlens": bounds, "max_seqlen": longest}

    def body(self, values: Values) -> torch.Tensor:
        x, bounds = values["x"], values["cu_seqlens"]
        item = torch.bucketize(torch.arange(len(x)), bounds[1:], right=True)
        sums = x.new_zeros(len(bounds), 4).index_add_(0, item, x)
        return self.linear(x + sums[item])

    def get_encoder_cudagraph_config(self) -> EncoderCudaGraphConfig:
        return EncoderCudaGraphConfig(
            modalities=["audio"],
            buffer_keys=["x", "cu_seqlens", "max_seqlen"],
            out_hidden_size=6,
            padding_logics=self.padding,
        )

    def get_input_modality(self, mm_kwargs: Any) -> str:
        return "audio"

    def get_max_frames_per_video(self) -> int:
        return 1

    def get_encoder_cudagraph_budget_range(self, config: Any) -> tuple[int, int]:
        return 4, 16

    def get_encoder_cudagraph_item_specs(self, mm_kwargs: Any) -> list[EncoderItemSpec]:
        return [EncoderItemSpec(n, n) for n in mm_kwargs["lengths"]]

    def select_encoder_cudagraph_items(self, mm_kwargs: Any, indices: Any) -> Any:
        parts = mm_kwargs["x"].split(mm_kwargs["lengths"])
        x = torch.cat([parts[i] for i in indices])
        return {"x": x, "lengths": [len(parts[i]) for i in indices]}

    def prepare_encoder_cudagraph_capture_inputs(
        self, budget: int, items: int, *_: Any
    ) -> EncoderCudaGraphCaptureInputs:
        lengths = [budget] + [0] * (items - 1)
        values = self.buffers(torch.zeros(budget, 4), lengths)
        return EncoderCudaGraphCaptureInputs(values)

    def prepare_encoder_cudagraph_replay_buffers(
        self, mm_kwargs: Any, *_: Any
    ) -> EncoderCudaGraphReplayBuffers:
        return EncoderCudaGraphReplayBuffers({**self.buffers(**mm_kwargs)})

    def encoder_cudagraph_forward(
        self, values: Values, path: str = "default"
    ) -> torch.Tensor:
        return self.body(values)

    def encoder_eager_forward(
        self, mm_kwargs: Any, path: str = "default"
    ) -> torch.Tensor:
        return Packed.body(self, Packed.buffers(self, **mm_kwargs))

    def postprocess_encoder_output(
        self,
        outputs: Values,
        indices: Any,
        per_item_out_tokens: Any,
        dest: Any,
        clone: bool = False,
        batch_mm_kwargs: Any = None,
    ) -> None:
        output = outputs["default"]
        scatter_output_slices(output, indices, per_item_out_tokens, dest, clone)


CONFIG = SimpleNamespace(
    compilation_config=SimpleNamespace(
        encoder_cudagraph_token_budgets=[],
        # vLLM 0.31 would put three of the items into one graph.
        encoder_cudagraph_max_vision_items_per_batch=2,
        encoder_cudagraph_max_frames_per_batch=None,
    ),
    model_config=SimpleNamespace(
        multimodal_config=SimpleNamespace(
            mm_encoder_tp_mode="weights", get_limit_per_prompt=lambda modality: 0
        )
    ),
    parallel_config=SimpleNamespace(tensor_parallel_size=1),
)


def results(model: Packed) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each item: by vLLM's manager, and eager."""
    x = torch.randn(sum(LENGTHS), 4, generator=torch.Generator().manual_seed(0))
    inputs = {"x": x, "lengths": LENGTHS}
    config: Any = CONFIG
    device = torch.device("cpu")
    with cuda_graphs_on_cpu() as graphs, torch.inference_mode():
        manager = EncoderCudaGraphManager(config, device, torch.float32, model)
        manager.capture("pool")
        found = manager.execute(inputs)
        expected = model.encoder_eager_forward(inputs).split(LENGTHS)
    assert (graphs.captures, graphs.replays) == (3, 3)
    assert manager.get_cumulative_stats()["graph_misses"] == 1
    return list(zip(found, expected, strict=True))


def equal(model: Packed) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in results(model))


def test_a_right_body_equals_eager() -> None:
    assert equal(Packed())


class ReadsALength(Packed):
    def body(self, values: Values) -> torch.Tensor:
        return super().body(
            values | {"x": values["x"][: int(values["cu_seqlens"][-1])]}
        )


class ReadsAMask(Packed):
    def body(self, values: Values) -> torch.Tensor:
        return super().body(values)[values["x"].any(1)]


class TakesFromTheHost(Packed):
    def body(self, values: Values) -> torch.Tensor:
        return super().body(values) * torch.tensor([2.0, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("model", [ReadsALength, ReadsAMask, TakesFromTheHost])
def test_no_capture_with_a_wait_or_a_copy_from_the_host(
    model: type[Packed],
) -> None:
    with pytest.raises(GraphError, match="device|host"):
        results(model())


class KeepsALength(Packed):
    """A number that Python computed from the lengths becomes part of the graph."""

    lengths: tuple[int, ...] = (1,)

    def buffers(self, x: torch.Tensor, lengths: list[int]) -> Values:
        self.lengths = tuple(lengths)
        return super().buffers(x, lengths)

    def body(self, values: Values) -> torch.Tensor:
        return super().body(values) / len(self.lengths)


class KeepsAListOfLengths(KeepsALength):
    def body(self, values: Values) -> torch.Tensor:
        first = values["x"][: self.lengths[0]]
        return super().body(values) + first.mean()


class KeepsAStaleTensor(Packed):
    """A replay reads the memory that the tensor had at the capture."""

    def buffers(self, x: torch.Tensor, lengths: list[int]) -> Values:
        self.x = x.clone()
        return super().buffers(x, lengths)

    def body(self, values: Values) -> torch.Tensor:
        used = min(len(self.x), 1)
        return super().body(values) + self.linear(self.x[:used])


@pytest.mark.parametrize(
    "model", [KeepsALength, KeepsAListOfLengths, KeepsAStaleTensor]
)
def test_no_replay_with_a_value_of_the_capture(model: type[Packed]) -> None:
    with pytest.raises(GraphError, match="values of the capture"):
        results(model())


def test_what_the_host_reads_is_that_of_the_capture() -> None:
    class Scales(Packed):
        def body(self, values: Values) -> torch.Tensor:
            return super().body(values) * int(values["max_seqlen"])

    budgets = [4, 8, 4, 16, 1]  # of 3 and 1 together, of 5, of 16; 40 runs eager
    for budget, (found, expected) in zip(budgets, results(Scales()), strict=True):
        torch.testing.assert_close(found, expected * budget, rtol=1e-4, atol=1e-5)


def forgets_the_rest(buffer: torch.Tensor, values: torch.Tensor) -> None:
    buffer[: len(values)].copy_(values)


def test_padding_that_is_forgotten_shows() -> None:
    class SeesPadding(Packed):
        padding = {"x": forgets_the_rest, "cu_seqlens": CU_SEQLENS}

        def body(self, values: Values) -> torch.Tensor:
            return super().body(values) + values["x"].mean()

    assert not equal(SeesPadding())


def test_a_buffer_that_no_replay_fills_shows() -> None:
    class Stale(Packed):
        def buffers(self, x: torch.Tensor, lengths: list[int]) -> Values:
            values = super().buffers(x, lengths)
            if x.any():  # at a replay
                del values["x"]
            return values

    assert not equal(Stale())
