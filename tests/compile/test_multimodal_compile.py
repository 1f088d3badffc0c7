# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What a real engine compiles, by exact counters, in the style of vLLM's
tests/compile/fullgraph/test_multimodal_compile.py. Each test is a process of its own.
"""

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationMode

from vllm_mmc.compilation.counters import counters
from vllm_mmc.models.qwen2_5_vl import CompiledQwen2_5_VLForConditionalGeneration
from vllm_mmc.testing.checkpoints import qwen2_5_vl_prompt
from vllm_mmc.testing.engine import ENGINE_ENVIRONMENT, default_engine_args
from vllm_mmc.testing.media import photograph_at

pytestmark = pytest.mark.forked

# vLLM's own graph: the text backbone.
BACKBONE = 1
REGIONS = 3
DEPTH = 4


@pytest.fixture(autouse=True)
def engine_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def answer(checkpoint: Path, compilation_config: dict[str, Any]) -> LLM:
    """Start an engine, which profiles with the largest image, and send two images."""
    llm = LLM(
        **default_engine_args(
            checkpoint,
            limit_mm_per_prompt={"image": 1, "video": 0},
            compilation_config=compilation_config,
        )
    )
    for size in ((56, 56), (280, 196)):
        request = {
            "prompt": qwen2_5_vl_prompt("What is this?", images=1),
            "multi_modal_data": {"image": photograph_at(*size)},
        }
        llm.generate(request, SamplingParams(max_tokens=2), use_tqdm=False)
    return llm


def model_class(llm: LLM) -> type:
    return llm.apply_model(type)[0]


def test_on(
    qwen2_5_vl: Path,
    cache_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing compiled is kept there, only what vLLM knows of model classes.
    classes = cache_root / "modelinfos"
    classes.mkdir(exist_ok=True)
    (tmp_path / "modelinfos").symlink_to(classes)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    with (
        compilation_counter.expect(
            num_models_seen=REGIONS + BACKBONE,
            num_aot_compiles=REGIONS + BACKBONE,
            num_aot_artifacts_saved=REGIONS + BACKBONE,
            num_aot_artifacts_loaded=0,
        ),
        counters.expect(
            structures=REGIONS,
            graphs=REGIONS,
            followers=DEPTH - 1,
            recompiles=0,
            artifact_loads=0,
        ),
    ):
        llm = answer(qwen2_5_vl, {"compile_mm_encoder": True})
        assert model_class(llm) is CompiledQwen2_5_VLForConditionalGeneration
    compilation = llm.llm_engine.vllm_config.compilation_config
    assert compilation.mode == CompilationMode.DYNAMO_TRACE_ONCE
    # What `vllm bench startup` reports.
    assert compilation.encoder_compilation_time == pytest.approx(
        counters.compile_seconds
    )
    kept = sorted(p.parent.name.partition("-")[0] for p in tmp_path.rglob("artifact"))
    assert kept == [
        "CompiledQwen2_5_VisionBlock",
        "CompiledQwen2_5_VisionPatchEmbed",
        "CompiledQwen2_5_VisionPatchMerger",
    ]


@pytest.mark.parametrize(
    "compilation_config",
    [{}, {"compile_mm_encoder": False}],
    ids=["default", "off"],
)
def test_off(compilation_config: dict[str, Any], qwen2_5_vl: Path) -> None:
    with (
        compilation_counter.expect(num_models_seen=BACKBONE),
        counters.expect(structures=0, graphs=0, followers=0, artifact_loads=0),
    ):
        # The backbone, which is not looked at here, is traced but not generated.
        llm = answer(qwen2_5_vl, compilation_config | {"backend": "eager"})
        assert model_class(llm) is CompiledQwen2_5_VLForConditionalGeneration


def test_mode_none(qwen2_5_vl: Path) -> None:
    """`--enforce-eager` wins over `compile_mm_encoder`, as in vLLM."""
    with (
        compilation_counter.expect(num_models_seen=0),
        counters.expect(structures=0, graphs=0),
    ):
        answer(
            qwen2_5_vl,
            {"mode": CompilationMode.NONE, "compile_mm_encoder": True},
        )
