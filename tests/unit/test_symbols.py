# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A release without a private name of vLLM or PyTorch costs no more than it must."""

import gc
import importlib
import json
import logging
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import vllm.config.model
import vllm.envs
from torch._inductor import async_compile, codecache, config
from transformers.utils import output_capturing
from vllm.multimodal.audio import AudioResampler
from vllm.multimodal.parse import MultiModalDataParser

import vllm_mmc.compat
from mmc_testing.logs import warnings_of
from vllm_mmc import metrics
from vllm_mmc.compat import (
    audio_resampler,
    dynamo,
    envs,
    garbage,
    inductor_headers,
    inductor_threads,
    mkl_functions,
    output_hooks,
    symbols,
    vllm_logging,
)
from vllm_mmc.compat.symbols import Symbol

NOT_HOOKS = {"capture", "symbols", "vllm_version"}
HOOKS = [
    importlib.import_module(f"vllm_mmc.compat.{module.name}")
    for module in pkgutil.iter_modules(vllm_mmc.compat.__path__)
    if module.name not in NOT_HOOKS
]


@pytest.fixture(autouse=True)
def look_up_again() -> Iterator[None]:
    for function in (symbols._look_up, symbols._warn):
        function.cache_clear()
    yield
    for function in (symbols._look_up, symbols._warn):
        function.cache_clear()


def ids(symbol: Symbol) -> str:
    return f"{symbol.path} {' '.join((*symbol.takes, *symbol.sets))}".strip()


@pytest.mark.parametrize("symbol", symbols.ALL, ids=ids)
def test_every_name_is_there(symbol: Symbol) -> None:
    older = symbol is symbols.MONITOR_TAG and vllm.__version__.startswith("0.31")
    assert (symbol.absent() is None) != older


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_hook_applies(hook: ModuleType) -> None:
    assert hook.applies() is None
    for heading in ("Why:", "Upstream:", "Remove when:", "Undo:"):
        assert f"\n{heading} " in (hook.__doc__ or ""), heading


def test_a_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    symbol = symbols.PRECOMPILE_HEADER
    monkeypatch.delattr(codecache, "_precompile_header")
    with warnings_of(symbols) as logged:
        assert symbol.find() is None and symbol.find() is None
    (warning,) = logged
    assert "there is no torch._inductor.codecache._precompile_header" in warning
    assert symbol.without in warning
    for use in (symbol.need, lambda: symbol.of(codecache)):
        with pytest.raises(symbols.AbsentSymbolError, match="_precompile_header"):
            use()


@pytest.mark.parametrize(
    "symbol",
    [
        Symbol("torch._no_such_module:name", "nothing"),
        Symbol("json:no_such_name", "nothing"),
        Symbol("json:dumps", "nothing", takes=("no_such_parameter",)),
        Symbol("json:JSONEncoder.__init__", "nothing", sets=("no_such_attribute",)),
        Symbol("torch._dynamo.aot_compile:CompileArtifacts.no_such_field", "nothing"),
    ],
    ids=ids,
)
def test_a_name_of_another_form(symbol: Symbol) -> None:
    assert symbol.absent() is not None and not symbol.usable()


def test_an_attribute_of_an_object() -> None:
    indent = Symbol("json:JSONEncoder.__init__", "nothing", sets=("indent",))
    encoder = json.JSONEncoder(indent=3)
    assert indent.of(encoder) == 3
    indent.set(encoder, 4)
    assert encoder.indent == 4
    assert indent.of(object(), None) is None


# ---------------------------------------------------------------- hooks


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
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
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


def test_garbage() -> None:
    assert not gc.isenabled()  # tests/conftest.py
    with garbage.kept():
        assert not gc.isenabled()
    assert not gc.isenabled()
    gc.enable()
    with garbage.kept():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vLLM says nothing at a start, nothing is said and nothing else happens."""
    said: list[str] = []
    elsewhere = logging.getLogger("vllm.config.elsewhere")
    monkeypatch.setattr(vllm.config.model, "logger", elsewhere)
    vllm_logging.when_resolved(said.append)
    try:
        elsewhere.info("Resolved architecture: none")
        assert not said
        assert "vllm.config.model" in (vllm_logging.applies() or "")
        monkeypatch.delattr(vllm.config.model, "logger")
        symbols._look_up.cache_clear()
        assert "vllm.config.model.logger" in (vllm_logging.applies() or "")
    finally:
        vllm_logging.leave()
    assert not logging.getLogger(vllm_logging.STARTS).filters


def test_output_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    region = torch.nn.Sequential(torch.nn.Linear(2, 2))
    install: Any = output_capturing.install_output_capuring_hook
    install(region[0], "attentions", 0)
    assert not output_hooks.collect(region)
    with output_hooks.taken_off(region):
        assert not region[0]._forward_hooks
    assert region[0]._forward_hooks
    monkeypatch.delattr(output_capturing, "_active_collector")
    symbols._look_up.cache_clear()
    assert "_active_collector" in (output_hooks.applies() or "")
    assert output_hooks.collect(region)  # nobody knows: the region stays eager
    assert not output_hooks.collect(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with output_hooks.taken_off(region):
        assert not region[0]._forward_hooks


def test_resampler(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = MultiModalDataParser(target_sr=16000)
    assert parser.audio_resampler.method == "torchaudio"
    monkeypatch.setattr(audio_resampler, "find_spec", lambda _: None)
    audio_resampler.choose_installed(parser)
    assert parser.audio_resampler.method == "soxr"

    def without_method(self: Any, target_sr: float, **_: Any) -> None:
        self.target_sr = target_sr

    monkeypatch.setattr(AudioResampler, "__init__", without_method)
    symbols._look_up.cache_clear()
    parser = MultiModalDataParser(target_sr=16000)
    with warnings_of(symbols) as logged:
        audio_resampler.choose_installed(parser)
    assert vars(parser.audio_resampler) == {"target_sr": 16000}
    assert len(logged) == 1 and "does not set method" in logged[0]


def test_dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import aot_compile

    field = aot_compile.AOTCompiledFunction.__dataclass_fields__
    monkeypatch.delitem(field, "_artifacts")
    monkeypatch.delitem(aot_compile.AOTCompiledFunction.__annotations__, "_artifacts")
    assert "_artifacts" in (dynamo.applies() or "")
    with pytest.raises(symbols.AbsentSymbolError, match="run eager"):
        dynamo.check_and_run(SimpleNamespace())


def test_settings_are_put_back() -> None:
    from torch.fx.experimental import _config as shapes

    before = shapes.backed_size_oblivious, shapes.use_duck_shape
    wanted = not before[0]
    with dynamo.settings(
        dynamic_sources=["a", "b"], size_oblivious=wanted, assume_32bit_indexing=True
    ):
        assert shapes.backed_size_oblivious is wanted and not shapes.use_duck_shape
        assert torch.compiler.config.dynamic_sources == "a,b"
        assert torch._dynamo.config.enable_aot_compile
    assert (shapes.backed_size_oblivious, shapes.use_duck_shape) == before


def test_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(mkl_functions, "FUNCTIONS", ("no_function_of_torch",))
    mkl_functions.resolve()
    assert mkl_functions.applies() == "PyTorch is built without MKL"


def test_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = symbols._look_up.__wrapped__
    gone = (symbols.MMAP_FILE, symbols.MERGE_FILES)
    monkeypatch.setattr(
        symbols, "_look_up", lambda s: (None, s.path) if s in gone else look_up(s)
    )
    for function in (metrics._warn, metrics._file_of):
        function.cache_clear()
    with warnings_of(metrics) as logged:
        metrics.publish({"graphs": 1})
        metrics.publish({"graphs": 2})
        list(metrics.EncoderCollector().collect())
    metrics._warn.cache_clear()
    assert any("are not published: AbsentSymbolError: prometheus" in w for w in logged)


# ---------------------------------------------------------------- a process without

WITHOUT_ANY = """
import json
import sys
import torch
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm_mmc.compat import symbols

# Gone for this package alone: torch itself uses them.
there, all_gone = symbols._look_up, sys.argv[1] == "all"
needed = {s for s in symbols.ALL if s.without == symbols.AOT_COMPILE.without}
symbols._look_up = lambda symbol: (
    (None, f"there is no {symbol.path}")
    if all_gone or symbol not in {*needed, symbols.HASH_FACTORS}
    else there(symbol)
)
import importlib
import pkgutil
import vllm_mmc.models
if all_gone:
    for module in pkgutil.iter_modules(vllm_mmc.models.__path__, "vllm_mmc.models."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name == "torchaudio", error  # of vLLM's Cohere ASR
from vllm_mmc import plugin
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
(shared,) = shared_graph.structures()
plugin.register()
from vllm import ModelRegistry
ours = [n for n, m in ModelRegistry.models.items() if "vllm_mmc" in m.module_name]
print(json.dumps(vars(counters) | {"failure": shared.failure, "models": len(ours)}))
"""


@pytest.mark.parametrize("gone", ["optional", "all"])
def test_the_package_goes_on_without(gone: str, tmp_path: Path) -> None:
    """Without the optional names it imports, compiles, keeps and loads.

    Without all names it imports, and the region runs eager with its reason.
    """
    (tmp_path / "without.py").write_text(WITHOUT_ANY)
    done = subprocess.run(
        [sys.executable, tmp_path / "without.py", gone],
        env=os.environ | {"VLLM_CACHE_ROOT": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    counted = (found["graphs"], found["artifact_loads"], found["fallbacks"])
    if gone == "optional":
        assert counted == (1, 1, 0) and found["failure"] is None
    else:
        assert counted == (0, 0, 2)
        assert "there is no torch._dynamo.config:enable_aot_compile" in found["failure"]
    assert found["models"] > 10
