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

SERVE = ["--dtype=float32", "--max-num-seqs=4", "--kv-cache-memory-bytes=134217728"]
PICTURES = ["--max-model-len=2048", '--limit-mm-per-prompt={"image": 1, "video": 0}']


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "media", "graphs"),
    [("qwen2_5_vl", "picture", 3), ("whisper", "transcription", 1)],
)
def test_real_servers(
    family: str,
    media: str,
    graphs: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if media != "picture":  # vLLM reads a list of recordings with pandas
        pytest.importorskip("pandas", reason="vllm-mmc[bench] is not installed")
    out = tmp_path / "found.json"
    options = [f"--media={media}", "--num-prompts=5", "--output-len=4"]
    serve = SERVE + PICTURES * (media == "picture")
    command = [str(Path(sys.executable).with_name("vllm-mmc")), "bench", *options]
    checkpoint = str(request.getfixturevalue(family))
    done = subprocess.run(
        [*command, f"--json={out}", checkpoint, *serve],
        env=os.environ | ENGINE_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0
    rounds = json.loads(out.read_text())["rounds"]
    assert [r["mode"] for r in rounds] == ["off", "on", "off", "on"]
    compiled = [
        [r["counters"].get(name, 0) for name in ("graphs", "artifact_loads")]
        for r in rounds
    ]
    assert compiled == [[0, 0], [graphs, 0], [0, 0], [0, graphs]]
    answers = rounds[0]["alone"]["generated_texts"]
    assert all(answers)
    for found in rounds:
        assert found["counters"].get("recompiles", 0) == 0
        for load in (found["loads"]["inf"], found["alone"]):
            assert (load["completed"], load["failed"]) == (5, 0)
            assert load["median_ttft_ms"] > 0
        # One at a time, each request is one call.
        assert len(found["encoder_ms"]) == 5
        assert min(found["encoder_ms"]) > 0
        assert found["alone"]["generated_texts"] == answers
