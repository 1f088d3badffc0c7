# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A release without a private name of vLLM or PyTorch costs no more than it must."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import vllm.envs
from torch._inductor import async_compile, codecache, config

from mmc_testing.logs import warnings_of
from vllm_mmc.compat import (
    envs,
    garbage,
    inductor_headers,
    inductor_threads,
    mkl_functions,
    symbols,
)


@pytest.fixture(autouse=True)
def look_up_again() -> Iterator[None]:
    for function in (symbols._look_up, symbols._warn):
        function.cache_clear()
    yield
    for function in (symbols._look_up, symbols._warn):
        function.cache_clear()


@pytest.mark.parametrize("symbol", symbols.WITHOUT)
def test_every_name_is_there(symbol: str) -> None:
    assert symbols.absent(symbol) is None
    assert symbols.find(symbol) is not None


@pytest.mark.parametrize("hook", [envs, garbage, inductor_headers, inductor_threads])
def test_every_hook_applies(hook: object) -> None:
    assert hook.applies() is None  # type: ignore[attr-defined]


def test_a_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    symbol = "torch._inductor.codecache:_precompile_header"
    monkeypatch.delattr(codecache, "_precompile_header")
    with warnings_of(symbols) as logged:
        assert symbols.find(symbol) is None and symbols.find(symbol) is None
    (warning,) = logged
    assert "there is no torch._inductor.codecache._precompile_header" in warning
    assert symbols.WITHOUT[symbol] in warning


def test_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = codecache._precompile_header
    with inductor_headers.unprepared():
        assert codecache._precompile_header("<vector>", "g++", device="cpu") == ""
    assert codecache._precompile_header is before
    monkeypatch.delattr(codecache, "_precompile_header")
    symbols._look_up.cache_clear()
    with warnings_of(symbols) as logged, inductor_headers.unprepared():
        assert not hasattr(codecache, "_precompile_header")
    assert len(logged) == 1 and "_precompile_header" in (
        inductor_headers.applies() or ""
    )


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(inductor_threads.os, "sched_getaffinity", lambda _: {0, 1, 2})
    before = vars(async_compile.AsyncCompile)["use_process_pool"]
    with config.patch(compile_threads=1):
        with inductor_threads.more():
            assert config.compile_threads == 3
            assert async_compile.AsyncCompile.use_process_pool() is False
        assert config.compile_threads == 1
        assert vars(async_compile.AsyncCompile)["use_process_pool"] is before
        monkeypatch.delattr(async_compile.AsyncCompile, "use_process_pool")
        symbols._look_up.cache_clear()
        with warnings_of(symbols) as logged, inductor_threads.more():
            assert config.compile_threads == 1
    assert len(logged) == 1 and "use_process_pool" in (inductor_threads.applies() or "")


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MMC_TEST", "1")
    envs.declare(["VLLM_MMC_TEST"])
    assert vllm.envs.environment_variables["VLLM_MMC_TEST"]() == "1"
    envs.forget(["VLLM_MMC_TEST"])
    assert "VLLM_MMC_TEST" not in vllm.envs.environment_variables
    monkeypatch.setattr(vllm.envs, "environment_variables", None)
    envs.declare(["VLLM_MMC_TEST"])
    envs.forget(["VLLM_MMC_TEST"])
    assert envs.applies() is not None


def test_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(mkl_functions, "FUNCTIONS", ("no_function_of_torch",))
    mkl_functions.resolve()
    assert mkl_functions.applies() == "PyTorch is built without MKL"


WITHOUT_ANY = """
import json
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm_mmc.compat import symbols

# Gone for this package alone: torch itself uses them.
symbols._look_up = lambda symbol: (None, f"there is no {symbol}")
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledWithout(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.T


with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig())):
    for _ in range(2):
        shared_graph._structures.clear()
        region, x = CompiledWithout(), torch.randn(5, 8)
        with torch.inference_mode():
            torch.testing.assert_close(region(x), region.forward(x))
print(json.dumps(vars(counters)))
"""


def test_the_package_goes_on_without_any(tmp_path: Path) -> None:
    """Imports, compiles, keeps and loads."""
    (tmp_path / "without.py").write_text(WITHOUT_ANY)
    done = subprocess.run(
        [sys.executable, tmp_path / "without.py"],
        env=os.environ | {"VLLM_CACHE_ROOT": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["graphs"], found["artifact_loads"], found["fallbacks"]) == (1, 1, 0)
