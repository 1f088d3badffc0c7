# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Which class runs: ours by its own name, and ours with nothing asked for."""

from pathlib import Path

import pytest
import torch
from vllm.config import CompilationMode

from mmc_testing.engine import load_model, stock_class, tower_context
from mmc_testing.release import is_before
from vllm_mmc import __version__
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.counters import counters
from vllm_mmc.demo.probe import Probe, Run

(ENTRY,) = [e for e in CATALOG if e.architecture.startswith("Qwen2_5_VL")]


def test_by_its_own_name_and_compiling_only_when_asked(
    qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """The text model is compiled as always; of the encoder nothing is."""
    probe = Probe(
        checkpoint=str(qwen2_5_vl),
        family=ENTRY.family,
        depth=4,
        engine_args={
            "hf_overrides": {"architectures": [ENTRY.compiled_architecture]},
            "limit_mm_per_prompt": {"image": 1, "video": 0},
            "max_model_len": 512,
            "max_num_batched_tokens": 512,
        },
        prompts=[[(84, 140)]],
        timed_runs=1,
    )
    with Run(probe, tmp_path, {"VLLM_LOGGING_LEVEL": "INFO"}) as run:
        found = run.findings()
        log = run.log.read_text()
    assert f"Resolved architecture: {ENTRY.compiled_architecture}" in log
    assert found.model == ENTRY.model
    assert (found.graphs, found.artifact_loads, found.compile_seconds) == (0, 0, 0)
    assert len(found.tokens[0]) == 16
    # vLLM 0.31 does not name what it has compiled.
    assert is_before("0.32") or "[backbone]" in log
    said = f"vllm_mmc {__version__}"
    (line,) = [line for line in log.splitlines() if said in line]
    name, regions = ENTRY.compiled_architecture, ", ".join(ENTRY.regions)
    assert line.endswith(
        f"serves {name}. With compile_mm_encoder it compiles: {regions}."
    )


@pytest.mark.parametrize("mode", [CompilationMode.NONE, CompilationMode.VLLM_COMPILE])
def test_without_compile_mm_encoder_ours_is_stock_to_the_bit(
    qwen2_5_vl: Path, mode: CompilationMode
) -> None:
    grid = [[1, 6, 10], [1, 2, 2]]
    patches = torch.randn(64, 3 * 2 * 14 * 14, generator=torch.manual_seed(0))
    outputs = []
    stock = stock_class(ENTRY.architecture)
    with counters.expect(structures=0, followers=0, graphs=0, artifact_loads=0):
        for choice in ({}, stock):
            with tower_context(qwen2_5_vl, mode=mode, **choice) as config:
                model = load_model(config)
                ours = f"{type(model).__module__}:{type(model).__name__}" == ENTRY.model
                assert ours == (choice is not stock)
                with torch.inference_mode():
                    outputs.append(model.visual(patches, grid))
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
