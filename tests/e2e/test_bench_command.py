# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc bench` with real servers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_mmc.demo import media
from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT

SERVE = ["--dtype=float32", "--max-num-seqs=4", "--kv-cache-memory-bytes=134217728"]
PICTURES = ["--max-model-len=2048", '--limit-mm-per-prompt={"image": 1, "video": 0}']
REQUESTS = 5


def recordings(directory: Path) -> Path:
    """As many files of speech as there are requests."""
    directory.mkdir()
    for i in range(REQUESTS):
        (directory / f"{i}.wav").write_bytes(media.wav(media.speech(1.0 + 0.7 * i)))
    return directory


def of_pictures(directory: Path) -> list[str]:
    plot = directory / "found.svg"
    return [
        "--encoder-graphs",
        "--request-rate=inf",
        "--request-rate=4",
        f"--plot={plot}",
    ]


def of_a_folder(directory: Path) -> list[str]:
    return ["--media=speech", f"--folder={recordings(directory / 'speech')}"]


def of_a_dataset(directory: Path) -> list[str]:
    """A file in the form that vLLM calls `custom_audio`."""
    files = sorted(recordings(directory / "speech").iterdir())
    lines = [json.dumps({"prompt": "", "audio": str(file)}) + "\n" for file in files]
    (directory / "set.jsonl").write_text("".join(lines))
    dataset = f"--dataset-path={directory / 'set.jsonl'}"
    return ["--media=transcription", "--dataset-name=custom_audio", dataset]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options", "graphs"),
    [
        ("qwen2_5_vl", of_pictures, 3),
        ("qwen2_audio", of_a_folder, 1),
        ("whisper", lambda _: ["--media=transcription"], 1),
        ("whisper", of_a_dataset, 1),
    ],
    ids=["pictures", "a folder of speech", "transcription", "a dataset"],
)
def test_real_servers(
    family: str,
    options: Callable[[Path], list[str]],
    graphs: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if family != "qwen2_5_vl":  # vLLM reads a list of recordings with pandas
        pytest.importorskip("pandas", reason="vllm-mmc[bench] is not installed")
    out = tmp_path / "found.json"
    asked = [*options(tmp_path), f"--num-prompts={REQUESTS}", "--output-len=4"]
    serve = SERVE + PICTURES * (family == "qwen2_5_vl")
    command = [str(Path(sys.executable).with_name("vllm-mmc")), "bench", *asked]
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
    modes = ["off", "on", *["graphs"] * ("--encoder-graphs" in asked)]
    assert [r["mode"] for r in rounds] == modes * 2
    compiled = [
        [r["counters"].get(name, 0) for name in ("graphs", "artifact_loads")]
        for r in rounds
    ]
    on = len(modes) - 1
    assert compiled == [[0, 0], *[[graphs, 0]] * on, [0, 0], *[[0, graphs]] * on]
    answers = rounds[0]["alone"]["generated_texts"]
    assert all(answers)
    rates = [o.split("=")[1] for o in asked if o.startswith("--request-rate")]
    for found in rounds:
        assert found["counters"].get("recompiles", 0) == 0
        assert [*found["loads"]] == (rates or ["inf"])
        for load in (*found["loads"].values(), found["alone"]):
            assert (load["completed"], load["failed"]) == (REQUESTS, 0)
            assert load["median_ttft_ms"] > 0
        # One at a time, each request is one call.
        assert len(found["encoder_ms"]) == REQUESTS
        assert min(found["encoder_ms"]) > 0
        assert found["alone"]["generated_texts"] == answers
    for plot in (o.removeprefix("--plot=") for o in asked if o.startswith("--plot")):
        assert "<!-- compile graphs -->" in Path(plot).read_text()
