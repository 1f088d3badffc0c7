# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc bench` with real servers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT

SERVE = ["--dtype=float32", "--max-model-len=2048", "--max-num-seqs=4"]
SERVE += ["--kv-cache-memory-bytes=134217728"]
SERVE += ['--limit-mm-per-prompt={"image": 1, "video": 0}']


@pytest.mark.slow
def test_pictures(qwen2_5_vl: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    options = ["--num-prompts=8", "--output-len=4", f"--json={out}"]
    command = str(Path(sys.executable).with_name("vllm-mmc"))
    done = subprocess.run(
        [command, "bench", *options, str(qwen2_5_vl), *SERVE],
        env=os.environ | ENGINE_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    rounds = json.loads(out.read_text())["rounds"]
    assert [r["mode"] for r in rounds] == ["off", "on", "off", "on"]
    graphs = [(r["mode"], r["counters"]["graphs"]) for r in rounds]
    assert graphs == [("off", 0), ("on", 3), ("off", 0), ("on", 0)]
    assert rounds[3]["counters"]["artifact_loads"] == 3
    for found in rounds:
        load = found["loads"]["inf"]
        assert (load["completed"], load["failed"]) == (8, 0)
        assert load["median_ttft_ms"] > 0
        assert load["generated_texts"] == rounds[0]["loads"]["inf"]["generated_texts"]
