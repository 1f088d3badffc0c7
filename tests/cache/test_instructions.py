# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""No kernel is loaded that may hold instructions which this CPU lacks."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import _get_cpu_arch_cflags
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from vllm_mmc.cache import key, store
from vllm_mmc.cache.bundles import BundleError, export_bundle, import_bundle, verify
from vllm_mmc.cache.explain import why_missed
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

HERE = {"avx2": True, "avx512_f": True, "amx_tile": False, "l2_cache_size": 1 << 20}
WIDER = HERE | {"amx_tile": True}


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledSomewhere(nn.Module):
    """Has no kernel of its own, which makes it quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def move(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: Mapping[str, object],
    unlisted: frozenset[str] = frozenset(),
) -> None:
    """To a machine with this CPU."""
    monkeypatch.setattr(key, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(key, "_unlisted", lambda: unlisted)


def start() -> None:
    shared_graph._structures.clear()
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config), torch.inference_mode():
        CompiledSomewhere()(torch.randn(5, 8))


def test_an_entry_of_a_wider_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    bundle = tmp_path / "bundle"
    move(monkeypatch, WIDER)
    with counters.expect(graphs=1, artifact_loads=0):
        start()
    export_bundle(bundle)
    (wider,) = key.root().glob("CompiledSomewhere-*")

    move(monkeypatch, HERE)
    told: list[list[str] | None] = []
    with store.explain_lookups(lambda *entry: told.append(why_missed(*entry))):
        start()
    assert told == [["instructions.amx_tile: yes -> None"]]
    (finding,) = verify()
    assert finding.state == "stale"
    assert "made for instructions 'amx_tile', and this machine has ''" in finding.reason
    with pytest.raises(BundleError, match="made for instructions 'amx_tile'"):
        import_bundle(bundle)
    # Both live side by side, and each machine loads its own.
    with counters.expect(graphs=1, artifact_loads=0):
        start()
    assert len({wider, *key.root().glob("CompiledSomewhere-*")}) == 2
    for capabilities in (HERE, WIDER):
        move(monkeypatch, capabilities)
        with counters.expect(graphs=0, artifact_loads=1):
            start()


def test_what_tells_machines_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def here() -> str:
        return key.machine_factors()["instructions"]

    move(monkeypatch, HERE)
    assert here() == "avx2 avx512_f"
    move(monkeypatch, HERE | {"l2_cache_size": 1 << 21, "num_logical_cores": 96})
    assert here() == "avx2 avx512_f"
    move(monkeypatch, HERE, frozenset({"gfni"}))
    assert here() == "avx2 avx512_f gfni"
    move(monkeypatch, {"sve": True, "sve_max_length": 256})
    assert here() == "sve sve_max_length=256"


def test_this_cpu_is_told_as_the_compiler_is() -> None:
    named = key.machine_factors()["instructions"].split()
    flags = Path("/proc/cpuinfo").read_text().split()
    for ours, theirs in (("avx2", "avx2"), ("movbe", "movbe"), ("sve", "sve")):
        assert (ours in named) == (theirs in flags)


def test_a_mixed_fleet_that_is_bounded_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    def factors(capability: str) -> set[str]:
        monkeypatch.setattr(
            torch.backends,
            "cpu",
            SimpleNamespace(get_cpu_capability=lambda: capability),
        )
        found = set()
        for capabilities in (HERE, WIDER):
            move(monkeypatch, capabilities)
            found.add(key.machine_factors()["instructions"])
        return found

    with inductor_config.patch({"cpp.march": "x86-64-v3"}):
        assert factors("AVX2") == {"-march=x86-64-v3"}
        assert len(factors("AVX512")) == 2  # Inductor adds what it finds
        with inductor_config.patch({"cpp.simdlen": 512}):
            assert len(factors("AVX2")) == 2
    assert len(factors("AVX2")) == 2


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86 compilers")
def test_what_the_compiler_is_told() -> None:
    """The two ways that the key knows."""
    assert "TORCHINDUCTOR_CPP_MARCH" not in os.environ
    assert _get_cpu_arch_cflags("g++") == ["march=native"]
    with inductor_config.patch({"cpp.march": "x86-64-v3"}):
        assert _get_cpu_arch_cflags("g++") == ["march=x86-64-v3"]


@pytest.mark.parametrize("option", [{"cpp.march": "x86-64-v3"}, {"cpp.cxx": "clang++"}])
def test_inductor_options_are_part_of_the_key(
    option: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where vLLM leaves them out of its own."""
    monkeypatch.setenv("VLLM_USE_MEGA_AOT_ARTIFACT", "0")
    config = VllmConfig(compilation_config=CompilationConfig())
    before = key._make_environment(config)
    with inductor_config.patch(option):
        after = key._make_environment(config)
    assert before.factors["inductor"] != after.factors["inductor"]


def test_what_is_not_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VllmConfig(compilation_config=CompilationConfig())
    before = key._make_environment(config).factors
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with inductor_config.patch(compile_threads=7):
        assert key._make_environment(config).factors == before
