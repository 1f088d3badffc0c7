# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Two processes, weights split (tensor parallel) or items split (data parallel)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, tower_context
from mmc_testing.parity import assert_close
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.counters import counters

INPUTS = {n: f.sharded_inputs for n, f in FAMILIES.items() if f.sharded_inputs}
REGIONS = {entry.family: len(entry.regions) for entry in CATALOG}
CASES = [(family, "weights") for family in INPUTS]
# As in vLLM: of these encoders it splits the items of those that see.
CASES += [(name, "data") for name in INPUTS if FAMILIES[name].modality == "image"]


def embed(
    rank: int, family: str, checkpoint: Path, directory: Path, tp_mode: str
) -> None:
    torch.manual_seed(0)
    inputs = INPUTS[family]()
    outputs = []
    args = {
        **FAMILIES[family].engine_args,
        # Room for three items of any kind.
        "max_num_batched_tokens": 8192,
        "limit_mm_per_prompt": {FAMILIES[family].modality: 3, "video": 0},
    }
    with tower_context(
        checkpoint,
        compile_mm_encoder=True,
        rank=rank,
        world_size=2,
        rendezvous=directory / "rendezvous",
        mm_encoder_tp_mode=tp_mode,
        distributed_executor_backend="mp",
        **args,
    ) as vllm_config:
        model = load_model(vllm_config)
        for eager in (True, False):
            for module in model.modules():
                if hasattr(module, "_mmc_shared_graph"):  # a region
                    module.do_not_compile = eager
            with torch.inference_mode():
                outputs.append(model.embed_multimodal(**inputs))
    regions = REGIONS[family]
    assert counters.structures == counters.graphs + counters.artifact_loads == regions
    assert (counters.followers, counters.unkept) == (3, 0)
    (directory / f"{rank}.graphs").write_text(str(counters.graphs))
    torch.save([torch.cat(items) for items in outputs], directory / f"{rank}.pt")


@pytest.mark.slow  # up to four cold compilations on each of two ranks
@pytest.mark.parametrize(("family", "tp_mode"), CASES)
def test_two_ranks_equal_eager(
    family: str,
    tp_mode: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = request.getfixturevalue(family)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_DIST_IDENT", tmp_path.name)  # of shared memory
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, str(rank)),
                *(family, checkpoint, tmp_path, tp_mode),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [process.communicate()[0][-4000:] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(logs)
    # No graph reads its rank, so one rank compiles it, and the other one loads it.
    graphs = [int((tmp_path / f"{rank}.graphs").read_text()) for rank in range(2)]
    assert sum(graphs) == REGIONS[family]
    for rank in range(2):
        eager, compiled = torch.load(tmp_path / f"{rank}.pt")
        assert_close(f"rank {rank}", compiled, eager, ratio=2e-5)
    first, second = (torch.load(tmp_path / f"{rank}.pt")[1] for rank in range(2))
    assert torch.equal(first, second)


if __name__ == "__main__":
    rank, family, checkpoint, directory, tp_mode = sys.argv[1:]
    embed(int(rank), family, Path(checkpoint), Path(directory), tp_mode)
