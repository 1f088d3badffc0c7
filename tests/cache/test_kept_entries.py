# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""An entry is taken away only if it is proven to be of no use."""

import errno
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.logs import warnings_of
from vllm_mmc.cache import entry as entries
from vllm_mmc.cache import store
from vllm_mmc.cache.key import root
from vllm_mmc.compat import inductor_headers
from vllm_mmc.compilation import captured_globals, shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

HIDDEN = 8
FULL = OSError(errno.ENOSPC, "No space left on device")


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledKept(nn.Module):
    """Has no kernel of its own, which makes it quick to compile again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.fixture(autouse=True, scope="module")
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        yield config


def start_anew() -> None:
    shared_graph._structures.clear()
    region = CompiledKept()
    x = torch.randn(5, HIDDEN)
    with torch.inference_mode():
        torch.testing.assert_close(region(x), region.forward(x))


@pytest.fixture(scope="module")
def kept(vllm_config: VllmConfig) -> Path:
    """Its entry."""
    with counters.expect(graphs=1, artifact_loads=0, artifact_misses=1):
        start_anew()
    (entry,) = root().glob("CompiledKept-*")
    return entry


def state(entry: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(entry.rglob("*"))
    }


FAILURES: dict[str, tuple[object, str, Exception]] = {
    "a full disk": (shutil, "copytree", FULL),
    "too many open files": (
        Path,
        "read_bytes",
        OSError(errno.EMFILE, "Too many open files"),
    ),
    "a bad sector": (entries, "read", OSError(errno.EIO, "Input/output error")),
    "a directory mounted noexec": (
        torch.compiler,
        "load_compiled_function",
        ImportError("kernel.so: failed to map segment from shared object"),
    ),
    "a missing symbol": (
        torch.compiler,
        "load_compiled_function",
        OSError("kernel.so: undefined symbol: omp_get_max_threads"),
    ),
    "another pickle": (
        torch.compiler,
        "load_compiled_function",
        pickle.UnpicklingError("invalid load key"),
    ),
    "a hook without its name": (
        inductor_headers,
        "unprepared",
        AttributeError("no attribute '_precompile_header'"),
    ),
    "a source that cannot be read": (
        store,
        "changed_sources",
        PermissionError(errno.EACCES, "Permission denied"),
    ),
    "a global that cannot be imported": (
        captured_globals,
        "changed",
        ImportError("cannot import name"),
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_entry_that_cannot_be_loaded_stays(
    failure: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One WARNING, compiled for this process alone, and loaded again afterwards."""
    owner, name, error = FAILURES[failure]
    failed = []

    def fail(*_: Any, **__: Any) -> None:
        failed.append(name)
        raise error

    before = state(kept)
    with monkeypatch.context() as broken, warnings_of(store) as logged:
        broken.setattr(owner, name, fail)
        with counters.expect(graphs=1, artifact_loads=0, artifact_misses=1):
            start_anew()
    assert failed
    (warning,) = logged
    assert str(kept) in warning and str(error) in warning
    assert "stays in the cache" in warning and "vllm_mmc-work-" in warning
    assert state(kept) == before and entries.damage(kept) is None
    with counters.expect(graphs=0, artifact_loads=1, artifact_misses=0):
        start_anew()


def test_a_bad_copy_is_no_damage(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that says it has written what it has not."""
    copy = shutil.copytree

    def lose(*args: Any, **options: Any) -> None:  # it calls itself
        copy(*args, **options)
        artifact = Path(args[1]) / entries.ARTIFACT
        if artifact.exists():
            artifact.write_bytes(b"")

    before = state(kept)
    with monkeypatch.context() as broken, warnings_of(store) as logged:
        broken.setattr(shutil, "copytree", lose)
        with counters.expect(graphs=1, artifact_loads=0):
            start_anew()
    assert "the copy is not what was copied" in logged[0] and len(logged) == 1
    assert state(kept) == before


def test_an_outdated_entry_is_replaced(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(kept)
    with monkeypatch.context() as edited, warnings_of(store) as logged:
        edited.setattr(store, "changed_sources", lambda _: ["edited.py"])
        with counters.expect(graphs=1, artifact_loads=0):
            start_anew()
    assert logged == []
    assert entries.damage(kept) is None and state(kept) != before


def test_a_message_names_the_directory(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be copied or compiled: eager, and the entry stays."""

    def fail(*_: Any, **__: Any) -> None:
        raise FULL

    before = state(kept)
    with monkeypatch.context() as full, warnings_of(shared_graph) as logged:
        full.setattr(shutil, "copytree", fail)
        full.setattr(shared_graph.SharedGraph, "_compile", fail)
        with counters.expect(graphs=0, artifact_loads=0, fallbacks=1):
            start_anew()
    (warning,) = logged
    assert "make room in " in warning
    assert f"Its kernels are in {root().parent}/.vllm_mmc-work-" in warning
    assert state(kept) == before


def test_what_a_missing_module_proves(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mmc_lacking").mkdir()
    (tmp_path / "mmc_lacking/__init__.py").write_text("import mmc_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, gone in (("mmc_gone", True), ("mmc_lacking.part", False)):
        sources = tmp_path / "sources.json"
        sources.write_text(f'{{"{module}": "0"}}')
        captured = {f"__import__('{module}').x": "1"}
        if gone:
            assert entries.changed_sources(tmp_path) == [module]
            assert "-> nothing" in (captured_globals.changed(captured, {}) or "")
        else:
            with pytest.raises(ModuleNotFoundError):
                entries.changed_sources(tmp_path)
            with pytest.raises(ModuleNotFoundError):
                captured_globals.changed(captured, {})
        assert not captured_globals.same(captured, {})
