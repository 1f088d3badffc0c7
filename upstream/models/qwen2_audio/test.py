# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/compile/fullgraph/test_multimodal_compile.py of vLLM."""

import pytest
from vllm.compilation.counter import compilation_counter

LAYERS = 4  # of the tiny encoder in the place of the published one, which has 32


# forked, because vLLM's engine leaves the process changed
@pytest.mark.forked
def test_qwen2_audio_encoder_compilation(vllm_runner, monkeypatch):
    """The text model and each layer of the encoder; layers share one artifact."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with (
        compilation_counter.expect(
            num_models_seen=1 + LAYERS,
            num_aot_compiles=1 + 1,
            num_aot_artifacts_loaded=LAYERS - 1,
        ),
        vllm_runner(
            "Qwen/Qwen2-Audio-7B-Instruct",
            compilation_config={"compile_mm_encoder": True},
        ) as _,
    ):
        pass
