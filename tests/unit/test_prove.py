# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The pieces of `vllm-mmc prove`; tests/e2e/test_prove_command.py runs it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.model_executor.models import whisper
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

from vllm_mmc.cli import demo, prove
from vllm_mmc.cli.main import main
from vllm_mmc.demo import SHIPPED, offered
from vllm_mmc.demo.probe import Findings, recorded_calls
from vllm_mmc.prove import encoders
from vllm_mmc.prove.cases import CASES
from vllm_mmc.prove.floor import floor_of


def test_a_gpu_is_asked_for_with_both_runners_and_graphs() -> None:
    on_gpu = prove.starts("cuda")
    assert [start.runner for start in on_gpu] == ["V2"] * 5 + ["V1"]
    assert on_gpu[4].case == on_gpu[5].case
    asked = on_gpu[4].case.engine_args["compilation_config"]
    assert asked == {"compile_mm_encoder": True, "cudagraph_mm_encoder": True}
    on_cpu = prove.starts("cpu")
    assert [s.case.name for s in on_cpu] == [s.case.name for s in on_gpu[:4]]
    truth = on_gpu[0].case
    assert (truth.plugins, truth.engine_args) == ("", demo.EAGER)


def test_plans_are_of_published_sizes() -> None:
    plans = {plan.arch: plan for plan in encoders.plans(offered(), quick=False)}
    published = {name for name, case in CASES.items() if case.prove_sizes}
    assert set(plans) == published
    assert {plan.dtype for plan in plans.values()} == {"bfloat16"}
    assert plans[SHIPPED[0]].sizes == (64, 256, 1024, 4096, 16384)
    assert all(plan.blocks == "real" for plan in plans.values())
    quick = encoders.plans((SHIPPED[1],), quick=True)
    assert {plan.blocks for plan in quick} == {"tiny"}
    assert all(len(plan.sizes) == 1 and plan.rounds == 3 for plan in quick)


def test_floor_counts_products_and_bytes() -> None:
    tower = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4, bias=False))
    floor = floor_of(tower, lambda: tower(torch.randn(5, 8)))
    assert floor.product_flops == 2 * 5 * (8 * 32 + 32 * 4)
    assert floor.attention_flops == 0
    moved = 5 * 8 + 8 * 32 + 5 * 32, 5 * 32 + 32 * 4 + 5 * 4
    assert floor.bytes == 4 * sum(moved)
    assert set(floor.products) == {(5, 8, 32, True), (5, 32, 4, False)}


def row(**values: Any) -> dict[str, Any]:
    found = {"provider": "ours", "size": 64, "equal": True, "waits": None}
    return found | {"rms_to_truth": 1e-3, "rms_allowed": 2e-3, **values}


def measured(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"plan": {"arch": "an encoder"}, "unit": "patches", "rows": list(rows)}


def test_what_is_wrong_is_said() -> None:
    assert (
        list(encoders.problems(measured(row(), {"provider": "floor", "size": 64})))
        == []
    )
    wrong = row(equal=False, rms_to_truth=0.5), row(waits="called a synchronizing")
    first, second = encoders.problems(measured(*wrong))
    assert first == "an encoder, 64 patches, ours: error 0.5, allowed 0.002"
    assert "the host waits for the device: called a synch" in second


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--device", "cuda"], "PyTorch finds no GPU"),
        (["--device", "cpu", "--families", "nobody"], "no such family here: nobody"),
    ],
)
def test_what_is_not_there(
    argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prove", *argv]) == 2
    assert reason in capsys.readouterr().err


def engine(module: str, shift: float = 0) -> Findings:
    return Findings(f"{module}m:M", [[1, 2]], [np.ones((2, 3)) + shift], 3, 0, 0, 0, 1)


@pytest.mark.parametrize("wrong", [None, "engine", "encoder", "process"])
def test_the_whole_of_it(
    wrong: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is started: what the steps find is made up."""
    asked = []

    def run_case(label: str, probe: Any, place: Path, env: Any) -> Findings:
        asked.append((env["VLLM_USE_V2_MODEL_RUNNER"], env["VLLM_PLUGINS"]))
        ours = env["VLLM_PLUGINS"] == "mmc"
        shift = 1 if ours and wrong == "engine" else 0
        return engine("vllm_mmc." if ours else "vllm.", shift)

    def measure(plan: encoders.Plan, directory: Path) -> dict[str, Any]:
        if wrong == "process":
            raise RuntimeError("ended with 1")
        return measured(
            row(equal=wrong != "encoder", median_ms=1.5, kernels=7),
            {"provider": "floor", "size": 64, "median_ms": 0.5},
        )

    monkeypatch.setattr(demo, "run_case", run_case)
    monkeypatch.setattr(prove, "measure", measure)
    output = tmp_path / "out.json"
    argv = ["--device", "cpu", "--quick", "--families", SHIPPED[0], "--json", output]
    status = main(["prove", *map(str, argv)])
    assert status == (wrong is not None)
    assert asked == [("0", ""), ("0", "mmc"), ("0", "mmc"), ("0", "mmc")]
    found = json.loads(output.read_text())
    assert bool(found["problems"]) == (wrong is not None)
    assert len(found["engines"][SHIPPED[0]]) == 4
    assert found["environment"]["torch"] == torch.__version__
    printed = capsys.readouterr()
    assert ("WRONG" in printed.err) == (wrong is not None)
    if wrong != "process":
        assert "an encoder" in printed.out and "floor" in printed.out


def test_what_this_vllm_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    arches = ("qwen2_5_vl", "whisper", "whisper_large", "qwen2_audio")
    assert [CASES[arch].why_not() for arch in arches] == [None] * 4
    # As in vLLM 0.26.
    monkeypatch.setattr(whisper.WhisperAttention, "forward", lambda self, x: x)
    vision, *speech = (CASES[arch].why_not() for arch in arches)
    assert vision is None
    assert all("take no packed tokens" in str(reason) for reason in speech)


def test_calls_in_cuda_graphs_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `cudagraph_mm_encoder` the runner calls the manager, not the model."""

    class Model:
        def embed_multimodal(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x, 2 * x]

    def execute(self: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
        # What fits no graph goes to the model.
        return model.embed_multimodal(**kwargs) if len(kwargs["x"]) > 2 else [-x]

    model, x = Model(), torch.ones(2, 4)
    monkeypatch.setattr(EncoderCudaGraphManager, "execute", execute)
    calls = recorded_calls(model)
    model.embed_multimodal(x=x)
    manager = object.__new__(EncoderCudaGraphManager)
    manager.execute({"x": x})
    manager.execute({"x": torch.ones(3, 4)})
    assert [len(output) for _, output in calls] == [4, 2, 6]
    for repeat, output in list(calls):
        torch.testing.assert_close(torch.cat(repeat()), output)
    assert len(calls) == 3, "a repeated call is recorded"
