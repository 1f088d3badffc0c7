# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The files in examples/ run, on tiny checkpoints."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # torch asks for the source of a class
    spec.loader.exec_module(module)
    return module


@pytest.mark.forked
def test_own_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    example("own_encoder").main()
    *differences, graphs = capsys.readouterr().out.splitlines()
    assert len(differences) == 4
    # Sums of 256 products, in another order.
    assert all(float(line.rpartition(" ")[2]) < 1e-5 for line in differences)
    assert graphs == "12 blocks, 1 graph"


@pytest.mark.forked
def test_custom_serving(qwen2_5_vl: Path, capfd: pytest.CaptureFixture[str]) -> None:
    example("custom_serving").main(str(qwen2_5_vl))
    embeddings, graphs = capfd.readouterr().out.splitlines()[-2:]
    assert "[[1, 16, 24], [1, 10, 8]]: embeddings [116, " in embeddings
    assert graphs == "3 graphs"


@pytest.mark.slow
def test_offline_speech(whisper: Path) -> None:
    # As users run it: the engine is a process of its own.
    script = [sys.executable, str(EXAMPLES / "offline_speech.py"), str(whisper)]
    done = run(script, VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert [line for line in done if line.startswith("answer:")]
    (line,) = [line for line in done if " serves " in line]
    assert "With compile_mm_encoder it compiles: block." in line


@pytest.mark.slow
def test_ship_cache(qwen2_5_vl: Path, tmp_path: Path) -> None:
    arguments = ["--max-model-len=512", "--max-num-batched-tokens=512"]
    arguments += ['--limit-mm-per-prompt={"image": 1, "video": 0}', "--dtype=float32"]
    script = ["sh", str(EXAMPLES / "ship_cache.sh"), str(qwen2_5_vl), *arguments]
    done = run(script, cwd=tmp_path, VLLM_CACHE_ROOT=str(tmp_path / "cache"))
    assert len([line for line in done if line.startswith("whole ")]) == 3
    assert len([line for line in done if line.startswith("hit ")]) == 3


def run(command: list[str], *, cwd: Path | None = None, **env: str) -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env |= {"PATH": path, "VLLM_LOGGING_LEVEL": "INFO", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **ENGINE_ENVIRONMENT, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()
