# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What `vllm-mmc doctor` says of what an engine has shown."""

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from vllm_mmc.cli.doctor import diagnosis
from vllm_mmc.cli.engine import EncoderReport, StructureReport
from vllm_mmc.cli.main import main

MODEL = "vllm_mmc.models.qwen2_5_vl:CompiledQwen2_5_VLForConditionalGeneration"
COUNTERS: dict[str, int | float] = {"graphs": 1, "load_seconds": 0.128}


def text(because: str | None, *structures: tuple[Any, ...]) -> str:
    states = [StructureReport(*structure) for structure in structures]
    report = EncoderReport(MODEL, because, states, COUNTERS)
    return "\n".join(diagnosis(report))


def test_wrong_use_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # vLLM gives its logger a handler for stdout, which is this test's.
    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [])
    text_model = tmp_path / "text"
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(text_model)
    for model, said in {
        str(tmp_path / "none"): "none: ",
        str(text_model): "text is not a multimodal model of vLLM",
    }.items():
        options = ["--skip-tokenizer-init", "--max-model-len", "64"]
        assert main(["doctor", model, *options]) == 2
        (line,) = (
            line
            for line in capfd.readouterr().err.splitlines()
            if line.startswith("vllm-mmc doctor: ")
        )
        assert said in line


def test_compiled() -> None:
    told = text(None, ("CompiledA", None), ("CompiledB", None))
    assert "The encoder is compiled:\n  CompiledA: compiled\n" in told
    assert "load seconds  0.13" in told


def test_in_part() -> None:
    told = text(None, ("CompiledA", None), ("CompiledB", "it cannot be compiled. X"))
    assert "The encoder is compiled in part:" in told
    assert "CompiledB: eager: it cannot be compiled. X" in told


def test_measured() -> None:
    slower = "compiled takes 1.08 of eager's time here (2.16 and 2 ms)"
    faster = "compiled takes 0.8 of eager's time here (1.6 and 2 ms)"
    told = text(None, ("CompiledA", slower, slower), ("CompiledB", None, faster))
    assert "The encoder is compiled in part:" in told
    assert f"\n  CompiledA: eager: {slower}\n" in told
    assert f"\n  CompiledB: compiled: {faster}\n" in told


def test_off() -> None:
    told = text("compile_mm_encoder is off")
    assert "not compiled: compile_mm_encoder is off." in told
    assert "--compilation-config '{\"compile_mm_encoder\": true}'" in told


def test_for_another_reason_nothing_is_to_be_switched() -> None:
    assert "--compilation-config" not in text("its weights are offloaded")


def test_not_yet() -> None:
    assert "before the first request" in text(None)
