# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Two processes, weights split (tensor parallel) or items split (data parallel)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vllm_mmc.compilation.counters import counters
from vllm_mmc.testing.engine import load_model, tower_context
from vllm_mmc.testing.parity import assert_close

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
GRIDS = [[1, 8, 12], [1, 2, 2], [1, 16, 6]]


def embed(rank: int, checkpoint: Path, directory: Path, tp_mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    count = sum(t * h * w for t, h, w in GRIDS)
    pixels = torch.randn(count, 3 * 2 * 14 * 14, generator=generator)
    outputs = []
    with tower_context(
        checkpoint,
        compile_mm_encoder=True,
        rank=rank,
        world_size=2,
        rendezvous=directory / "rendezvous",
        mm_encoder_tp_mode=tp_mode,
        # Two images per prompt are the default of the tiny engine.
        limit_mm_per_prompt={"image": len(GRIDS), "video": 0},
        distributed_executor_backend="mp",
    ) as vllm_config:
        model = load_model(vllm_config)
        for eager in (True, False):
            for module in model.visual.modules():
                if hasattr(module, "do_not_compile"):
                    module.do_not_compile = eager
            with torch.inference_mode():
                outputs.append(
                    model.embed_multimodal(
                        pixel_values=pixels, image_grid_thw=torch.tensor(GRIDS)
                    )
                )
    assert (counters.structures, counters.graphs, counters.followers) == (3, 3, 3)
    torch.save([torch.cat(items) for items in outputs], directory / f"{rank}.pt")


@pytest.mark.slow  # twelve cold compilations for two ranks
@pytest.mark.parametrize("tp_mode", ["weights", "data"])
def test_two_ranks_equal_eager(
    tp_mode: str, qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_DIST_IDENT", tmp_path.name)  # of shared memory
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), qwen2_5_vl, tmp_path, tp_mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [process.communicate()[0][-4000:] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(logs)
    for rank in range(2):
        eager, compiled = torch.load(tmp_path / f"{rank}.pt")
        assert_close(f"rank {rank}", compiled, eager, ratio=2e-5)
    first, second = (torch.load(tmp_path / f"{rank}.pt")[1] for rank in range(2))
    assert torch.equal(first, second)


if __name__ == "__main__":
    embed(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
