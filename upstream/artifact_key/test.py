# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/compile/test_aot_compile.py."""

from pathlib import Path

import pytest
import torch
from vllm.compilation.decorators import support_torch_compile
from vllm.config import (
    CompilationConfig,
    CompilationMode,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.envs import disable_envs_cache
from vllm.forward_context import set_forward_context


class Linear(torch.nn.Module):
    def __init__(self, size: int, scale: float = 1.0, packed: bool = False):
        super().__init__()
        self.size = size
        self.scale = scale
        weight = torch.randn(8, size)
        # Linear layers on CPU keep packed weights elsewhere and remove the parameter.
        self.weight = torch.nn.Parameter(
            torch.empty(0) if packed else weight, requires_grad=False
        )
        self.stored = weight if packed else None

    def forward(self, x: torch.Tensor):
        weight = self.weight if self.stored is None else self.stored
        return x @ weight * self.scale


class Doubled(Linear):
    def forward(self, x: torch.Tensor):
        return x @ self.weight + x @ self.weight


class ProjMod(torch.nn.Module):
    def __init__(self, proj: torch.nn.Module, **kwargs):
        super().__init__()
        self.proj = proj

    def forward(self, x: torch.Tensor):
        return self.proj(x)


CompiledMod = support_torch_compile(dynamic_arg_dims={"x": 0})(
    type("CompiledMod", (ProjMod,), {})
)
OtherMod = support_torch_compile(dynamic_arg_dims={"x": 0})(
    type("OtherMod", (ProjMod,), {})
)


def make_config(mode: CompilationMode, backend: str) -> VllmConfig:
    vllm_config = VllmConfig(
        compilation_config=CompilationConfig(
            mode=mode, backend=backend, compile_sizes=[]
        )
    )
    vllm_config.compilation_config.mode = mode  # CPU would take another one
    return vllm_config


@pytest.fixture
def aot_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    disable_envs_cache()


@pytest.mark.usefixtures("aot_cache")
@pytest.mark.parametrize(
    ("other", "cls", "shared"),
    [
        (lambda: Linear(4), CompiledMod, True),
        (lambda: Linear(4), OtherMod, False),
        (lambda: Doubled(4), CompiledMod, False),
        (lambda: Linear(4, scale=2.0), CompiledMod, False),
        (lambda: Linear(5), CompiledMod, False),
        (lambda: torch.nn.Sequential(Linear(4)), CompiledMod, False),
    ],
    ids=["equal", "class", "submodule", "number", "shape", "wrapped"],
)
def test_key_has_what_the_graph_holds(other, cls, shared: bool):
    vllm_config = make_config(CompilationMode.DYNAMO_TRACE_ONCE, "eager")
    directories = []
    with set_current_vllm_config(vllm_config), torch.inference_mode():
        for mod in (
            CompiledMod(Linear(4), vllm_config=vllm_config),
            cls(other(), vllm_config=vllm_config),
        ):
            mod(torch.randn(5, 8))
            directories.append(vllm_config.compilation_config.local_cache_dir)
    assert (directories[0] == directories[1]) == shared


@pytest.mark.usefixtures("aot_cache")
def test_key_has_the_size_of_a_packed_weight():
    vllm_config = make_config(CompilationMode.DYNAMO_TRACE_ONCE, "eager")
    directories = set()
    with set_current_vllm_config(vllm_config), torch.inference_mode():
        for size in (4, 5):
            mod = CompiledMod(Linear(size, packed=True), vllm_config=vllm_config)
            assert mod(torch.randn(5, 8)).shape == (5, size)
            directories.add(vllm_config.compilation_config.local_cache_dir)
    assert len(directories) == 2


@pytest.mark.usefixtures("aot_cache")
def test_an_artifact_is_not_loaded_for_another_submodule():
    vllm_config = make_config(CompilationMode.VLLM_COMPILE, "inductor")
    with (
        set_current_vllm_config(vllm_config),
        set_forward_context({}, vllm_config),
        torch.inference_mode(),
    ):
        for proj in (Linear(4), Doubled(4), Linear(4)):
            x = torch.randn(5, 8)
            mod = CompiledMod(proj, vllm_config=vllm_config)
            torch.testing.assert_close(mod(x), proj(x))
