# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A region of a release without one private name: right, with its entry kept.

The names are gone for this package alone, because vLLM and PyTorch use them too.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from vllm_mmc.cache import entry as entries
from vllm_mmc.cache import key, work_directory
from vllm_mmc.compat import symbols
from vllm_mmc.compat.symbols import Symbol
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.attached import attach
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.compilation.region import RegionSpec

HIDDEN = 8
Remove = Callable[..., None]


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledWithoutNames(nn.Module):
    """Has no kernel of its own, which makes it quick to compile again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@support_torch_compile(
    dynamic_arg_dims={"x": 0}, mark_unbacked_dims={"x": 0}, is_encoder=True
)
class CompiledForOne(CompiledWithoutNames):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + 1


Base: Any = CompiledWithoutNames.__bases__[0]


class Plain(Base):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.fixture(autouse=True, scope="module")
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        yield config


@pytest.fixture
def remove(monkeypatch: pytest.MonkeyPatch) -> Remove:
    there = symbols._look_up

    def removed(*gone: Symbol) -> None:
        monkeypatch.setattr(
            symbols,
            "_look_up",
            lambda s: (None, f"there is no {s.path}") if s in gone else there(s),
        )

    return removed


def start_anew(
    cls: type[nn.Module] = CompiledWithoutNames, tokens: int = 5
) -> shared_graph.SharedGraph:
    """Right, compiled or not. Returns what the region uses."""
    with mock.patch.dict(shared_graph._structures, clear=True), torch.inference_mode():
        region, x = cls(), torch.randn(tokens, HIDDEN)
        torch.testing.assert_close(region(x), cls.forward(region, x))
        (shared,) = shared_graph.structures()
        return shared


@pytest.fixture(scope="module")
def kept(vllm_config: VllmConfig) -> Path:
    """The entry of the region."""
    with counters.expect(graphs=1, artifact_loads=0):
        start_anew()
    (entry,) = key.root().glob("CompiledWithoutNames-*")
    return entry


def state(entry: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(entry.rglob("*"))
    }


OPTIONAL = {
    "PRECOMPILE_HEADER": "a warm start",
    "INSTRUCTION_SETS": "a warm start",
    "INDUCTOR_SETTINGS": "the details of a key",
    "EXCLUDED_KEYS": "a call outside of inference mode",
    "KEY_SET": "a call outside of inference mode",
    "MODEL_TAG": "the name of a region",
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_warm_start_loads(name: str, kept: Path, remove: Remove) -> None:
    before = state(kept)
    work_directory._check_vector_instructions.cache_clear()
    remove(getattr(symbols, name))
    with (
        mock.patch.dict(key._environments, clear=True),
        counters.expect(graphs=0, artifact_loads=1, fallbacks=0),
    ):
        assert start_anew().failure is None
    assert state(kept) == before


@pytest.mark.parametrize(
    "name",
    [
        "CPP_GUARDS",
        "DYNAMIC_SOURCES",
        "DUCK_SHAPE",
        "SIZE_OBLIVIOUS",
        "INDEXING",
        "SECONDS",
        "MONITOR",
        "MONITOR_TAG",
        "PROCESS_POOL",
        "STRIDES",
    ],
)
def test_it_compiles(
    name: str, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    remove(getattr(symbols, name))
    with counters.expect(graphs=1, fallbacks=0):
        assert start_anew().failure is None


@pytest.mark.parametrize(
    "name",
    [
        "AOT_COMPILE",
        "AOT_ARTIFACTS",
        "AOT_FUNCTION",
        "AOT_UNCHECKED",
        "GUARD_MANAGER",
        "GUARD_CHECK",
    ],
)
def test_it_runs_eager_and_its_entry_stays(
    name: str, kept: Path, remove: Remove
) -> None:
    before = state(kept)
    symbol: Symbol = getattr(symbols, name)
    with pytest.MonkeyPatch.context(), counters.expect(graphs=0, fallbacks=1):
        remove(symbol)
        shared = start_anew()
    assert f"there is no {symbol.path}" in (shared.failure or "")
    assert state(kept) == before and entries.damage(kept) is None


def test_the_next_release_uses_that_entry(kept: Path) -> None:
    with counters.expect(graphs=0, artifact_loads=1, fallbacks=0):
        start_anew()


@pytest.mark.parametrize(
    ("name", "cls", "tokens"),
    [
        ("MARK_DYNAMIC", CompiledWithoutNames, 5),
        ("MARK_UNBACKED", CompiledForOne, 1),
    ],
)
def test_without_a_mark(
    name: str,
    cls: type[nn.Module],
    tokens: int,
    remove: Remove,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    symbol: Symbol = getattr(symbols, name)
    remove(symbol)
    with counters.expect(graphs=0, fallbacks=1):
        shared = start_anew(cls, tokens)
    assert f"there is no {symbol.path}" in (shared.failure or "")


@pytest.mark.parametrize("name", ["MAYBE_MARK_DYNAMIC", "CACHE_ENTRIES"])
def test_a_surveyed_region(name: str, remove: Remove) -> None:
    config = VllmConfig(compilation_config=CompilationConfig())
    config.compilation_config.backend = "eager"
    symbol: Symbol = getattr(symbols, name)
    remove(symbol)
    spec = RegionSpec("Plain", {"x": {0: None}}, {}, is_encoder=True, surveyed=True)
    region, x = Plain(), torch.randn(5, HIDDEN)
    attach(region, spec, config)
    with (
        set_current_vllm_config(config),
        mock.patch.dict(shared_graph._structures, clear=True),
        torch.inference_mode(),
        counters.expect(graphs=0, fallbacks=1),
    ):
        torch.testing.assert_close(region(x), Plain.forward(region, x))
        (shared,) = shared_graph.structures()
    assert f"there is no {symbol.path}" in (shared.failure or "")


def test_nothing_is_kept_without_a_key(kept: Path, remove: Remove) -> None:
    before = {path: state(path) for path in key.root().iterdir()}
    remove(symbols.HASH_FACTORS)
    with (
        mock.patch.dict(key._environments, clear=True),
        counters.expect(graphs=1, artifact_loads=0, artifact_misses=0, fallbacks=0),
    ):
        start_anew()
    assert {path: state(path) for path in key.root().iterdir()} == before


def test_without_the_keys_a_call_with_gradients_is_right(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_ExcludeDispatchKeyGuard")
    symbols._look_up.cache_clear()
    monkeypatch.setattr(symbols, "_look_up", symbols._look_up.__wrapped__)
    with mock.patch.dict(shared_graph._structures, clear=True):
        region, x = CompiledWithoutNames(), torch.randn(5, HIDDEN)
        for mode in (True, False):
            with torch.inference_mode(mode):
                out: Any = region(x)
                torch.testing.assert_close(out, region.forward(x))
