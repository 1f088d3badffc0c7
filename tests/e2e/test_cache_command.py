# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Build a cache without serving, carry it elsewhere, serve from it; and `doctor`."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mmc_testing.engine import vllm_serve

# As few tokens as a picture needs: each engine profiles with the largest one.
SMALL = (
    *("--max-model-len", "512", "--max-num-batched-tokens", "512"),
    *("--limit-mm-per-prompt", '{"image": 2, "video": 0}'),
)
SAME = (  # what `vllm_serve` gives a server beside these
    *("--dtype", "float32", "--max-num-seqs", "4", "--seed", "0"),
    *("--kv-cache-memory-bytes", str(128 << 20), "--disable-log-stats"),
    *SMALL,
)
COMPILED = ("--compilation-config", '{"compile_mm_encoder": true}')


def vllm_mmc(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("vllm-mmc"), *args],
        env=os.environ | {"VLLM_CACHE_ROOT": str(root)},
        capture_output=True,
        text=True,
    )


def test_a_cache_that_was_built_elsewhere(qwen2_5_vl: Path, tmp_path: Path) -> None:
    built, served, bundle = tmp_path / "built", tmp_path / "served", tmp_path / "bundle"
    made = vllm_mmc(built, "cache", "warm", str(qwen2_5_vl), *SAME)
    assert made.returncode == 0, made.stdout + made.stderr
    graphs = int(re.findall(r": (\d+) compiled, 0 already there", made.stdout)[0])
    assert graphs == 3
    for action in (("export", bundle), ("verify",)):
        done = vllm_mmc(built, "cache", *map(str, action))
        assert done.returncode == 0, done.stdout + done.stderr
    done = vllm_mmc(served, "cache", "import", str(bundle))
    assert "3 entries put in" in done.stdout, done.stdout + done.stderr

    env = {"VLLM_CACHE_ROOT": str(served)}
    with (
        vllm_serve(qwen2_5_vl, *SMALL, *COMPILED, env=env) as server,
        urllib.request.urlopen(f"{server.url}/metrics") as answer,
    ):
        metrics = answer.read().decode()
    for counter, value in (
        ("structures", 3),
        ("artifact_loads", graphs),
        ("graphs", 0),
        ("artifact_misses", 0),
        ("fallbacks", 0),
    ):
        assert f"\nvllm_mmc:encoder_{counter}_total {value}.0\n" in metrics, counter


@pytest.mark.slow  # three engines
def test_explain_and_doctor(qwen2_5_vl: Path, tmp_path: Path) -> None:
    made = vllm_mmc(tmp_path, "cache", "warm", str(qwen2_5_vl), *SAME)
    assert made.returncode == 0, made.stdout + made.stderr
    # All but one argument as before: each miss names what is in the way.
    changed = ("bfloat16" if arg == "float32" else arg for arg in SAME)
    told = vllm_mmc(tmp_path, "cache", "explain", str(qwen2_5_vl), *changed)
    assert told.returncode == 1
    misses = told.stdout.split("miss  ")[1:]
    assert len(misses) == 3
    for miss in misses:
        assert "model_config.dtype: torch.float32 -> torch.bfloat16" in miss, miss

    told = vllm_mmc(tmp_path, "doctor", str(qwen2_5_vl), *SAME, *COMPILED)
    assert told.returncode == 0, told.stderr
    assert "The encoder is compiled:" in told.stdout
    assert re.search(r"artifact loads +3\n", told.stdout)
    assert re.search(r"graphs +0\n", told.stdout)


@pytest.mark.slow  # an engine
def test_doctor_says_why_not(qwen2_5_vl: Path, tmp_path: Path) -> None:
    told = vllm_mmc(tmp_path, "doctor", str(qwen2_5_vl), *SAME, "--enforce-eager")
    assert told.returncode == 1, told.stderr
    assert "The encoder is not compiled: compile_mm_encoder is off." in told.stdout
    assert "compile_mm_encoder" in told.stdout.splitlines()[-1]
