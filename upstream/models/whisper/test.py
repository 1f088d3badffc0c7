# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/compile/fullgraph/test_multimodal_compile.py of vLLM."""

import pytest
from vllm.compilation.counter import compilation_counter

LAYERS = 4  # of openai/whisper-tiny, and of the tiny encoder in the other's place


# forked, because vLLM's engine leaves the process changed
@pytest.mark.forked
@pytest.mark.parametrize(
    "model",
    [
        "openai/whisper-tiny",
        pytest.param("fixie-ai/ultravox-v0_5-llama-3_2-1b", marks=pytest.mark.slow),
    ],
)
def test_whisper_encoder_compilation(model, vllm_runner, monkeypatch):
    """The text model and each layer of the encoder; layers share one artifact."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with (
        compilation_counter.expect(
            num_models_seen=1 + LAYERS,
            num_aot_compiles=1 + 1,
            num_aot_artifacts_loaded=LAYERS - 1,
        ),
        vllm_runner(model, compilation_config={"compile_mm_encoder": True}) as _,
    ):
        pass


@pytest.mark.forked
def test_whisper_encoder_no_compilation(vllm_runner, monkeypatch):
    """The encoder is not compiled by default."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with (
        compilation_counter.expect(num_models_seen=1),
        vllm_runner("openai/whisper-tiny") as _,
    ):
        pass
