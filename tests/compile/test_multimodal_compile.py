# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What a real engine compiles, by exact counters, in the style of vLLM's
tests/compile/fullgraph/test_multimodal_compile.py. Each test is a process of its own.
That nothing is compiled unless asked for is in tests/e2e/test_choice.py.
"""

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.compilation.counter import compilation_counter
from vllm.config import CompilationMode

from mmc_testing.checkpoints import FAMILIES
from vllm_mmc.cache.key import root
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.counters import counters
from vllm_mmc.demo import SHIPPED
from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT, default_engine_args

pytestmark = pytest.mark.forked

BACKBONE = 1  # vLLM's own graph: the text model
DEPTH = 4
CLASSES = {entry.family: entry.compiled_architecture for entry in CATALOG}


@pytest.fixture(autouse=True)
def engine_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def answer(
    checkpoint: Path,
    compilation_config: dict[str, Any],
    family: str = SHIPPED[0],
) -> LLM:
    """Start an engine, which profiles with the largest item, and send two items."""
    args = {**FAMILIES[family].engine_args, "compilation_config": compilation_config}
    llm = LLM(**default_engine_args(checkpoint, **args))
    for items in FAMILIES[family].samples[:2]:
        request = FAMILIES[family].request(items)
        llm.generate(request, SamplingParams(max_tokens=2), use_tqdm=False)
    return llm


def model_class(llm: LLM) -> str:
    return llm.apply_model(lambda model: type(model).__name__)[0]


@pytest.mark.parametrize(
    "family",
    [
        # An engine each; of audio, servers are in tests/e2e.
        pytest.param(name, marks=pytest.mark.slow if family.modality == "audio" else ())
        for name, family in FAMILIES.items()
        if family.regions
    ],
)
def test_on(
    family: str,
    request: pytest.FixtureRequest,
    cache_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = request.getfixturevalue(family)
    regions = len(FAMILIES[family].regions)
    # Nothing compiled is kept there, only what vLLM knows of model classes.
    classes = cache_root / "modelinfos"
    classes.mkdir(exist_ok=True)
    (tmp_path / "modelinfos").symlink_to(classes)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    with (
        compilation_counter.expect(
            num_models_seen=regions + FAMILIES[family].backbones_seen,
            num_aot_compiles=regions + BACKBONE,
            num_aot_artifacts_saved=regions + BACKBONE,
            num_aot_artifacts_loaded=0,
        ),
        counters.expect(
            structures=regions,
            graphs=regions,
            followers=DEPTH - 1,
            recompiles=0,
            artifact_loads=0,
        ),
    ):
        llm = answer(checkpoint, {"compile_mm_encoder": True}, family)
        assert model_class(llm) == CLASSES[family]
    compilation = llm.llm_engine.vllm_config.compilation_config
    assert compilation.mode == CompilationMode.DYNAMO_TRACE_ONCE
    # What `vllm bench startup` reports.
    assert compilation.encoder_compilation_time == pytest.approx(
        counters.compile_seconds
    )
    # Not the process's own work directory, which is beside the entries.
    kept = [path.parent.name.partition("-")[0] for path in root().glob("*/artifact")]
    assert sorted(kept) == sorted(FAMILIES[family].regions)


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
