# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""An artifact is loaded where it fits and nowhere else."""

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.logs import warnings_of
from vllm_mmc.cache import entry as cache
from vllm_mmc.cache import store
from vllm_mmc.cache.explain import why_missed
from vllm_mmc.cache.key import root
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile

HIDDEN = 8


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledCached(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).sin() * self.scale


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(compilation_config=CompilationConfig())
    with set_current_vllm_config(config):
        yield config


def start_anew(scale: float, cls: type[nn.Module] = CompiledCached) -> nn.Module:
    """A region in a process that has compiled nothing yet, as far as we can tell."""
    shared_graph._structures.clear()
    region = cls(scale)
    x = torch.randn(5, HIDDEN)
    with torch.inference_mode():
        torch.testing.assert_close(region(x), region.forward(x))
    return region


def entries(cls: type[nn.Module] = CompiledCached) -> set[Path]:
    return set(root().glob(f"{cls.__name__}-*"))


def compile_one(scale: float, cls: type[nn.Module] = CompiledCached) -> Path:
    """Returns the new entry."""
    before = entries(cls)
    with counters.expect(graphs=1, artifact_loads=0, artifact_misses=1):
        start_anew(scale, cls)
    (entry,) = entries(cls) - before
    return entry


def test_a_second_start_loads() -> None:
    entry = compile_one(2.0)
    with counters.expect(graphs=0, artifact_loads=1, artifact_misses=0):
        start_anew(2.0)
    factors = json.loads((entry / cache.FACTORS).read_text())
    assert {"vllm_mmc", "vllm", "torch", "structure", "graph"} <= factors.keys()


def test_no_garbage_is_collected_while_a_graph_is_made_or_loaded() -> None:
    """A finalizer of vLLM's aborts the process there (compat/garbage.py)."""
    tracing = []

    def collected(*_: object) -> None:
        tracing.append(torch._guards.TracingContext.try_get() is not None)

    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    gc.enable()
    try:
        compile_one(2.5)
        with counters.expect(artifact_loads=1):
            start_anew(2.5)
        assert gc.isenabled()
    finally:
        gc.disable()
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert tracing and not any(tracing)


def test_another_structure_does_not() -> None:
    compile_one(3.0)
    with counters.expect(graphs=1, artifact_loads=0):
        start_anew(4.0)


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledProduct(nn.Module):
    """Has no kernel of its own, which makes it quick to compile again."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "one bit": flip,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "foreign": lambda file: file.write_bytes(b"MZ\x90\x00"),
    "deleted": Path.unlink,
    "a directory": replace_by_directory,
    "a dangling link": replace_by_dangling_link,
}
FILES = (
    cache.ARTIFACT,
    cache.FACTORS,
    cache.SOURCES,
    cache.CAPTURED_GLOBALS,
    cache.DIGESTS,
)


def check_damaged(cls: type[nn.Module], scale: float, entry: Path) -> None:
    """A fresh compile, one WARNING, a right answer, and a whole entry again."""
    with counters.expect(graphs=1, artifact_loads=0), warnings_of(store) as logged:
        start_anew(scale, cls)
    assert [text.partition(":")[0] for text in logged] == ["Compiling again"]
    assert cache.damage(entry) is None
    with counters.expect(graphs=0, artifact_loads=1):
        start_anew(scale, cls)


@pytest.fixture(scope="module")
def product() -> Iterator[Path]:
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig())):
        yield compile_one(1.0, CompiledProduct)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_entry_is_compiled_again(
    file: str, damage: str, product: Path
) -> None:
    DAMAGE[damage](product / file)
    check_damaged(CompiledProduct, 1.0, product)


def test_another_entry_under_this_name(product: Path) -> None:
    other = compile_one(2.0, CompiledProduct)
    shutil.rmtree(product)
    shutil.copytree(other, product)
    check_damaged(CompiledProduct, 1.0, product)


@pytest.mark.parametrize("kind", ["an empty directory", "a file", "a link to a file"])
def test_no_entry_under_this_name(kind: str, product: Path, tmp_path: Path) -> None:
    shutil.rmtree(product)
    if kind == "an empty directory":
        product.mkdir()
    elif kind == "a file":
        product.write_bytes(b"MZ")
    else:
        (tmp_path / "file").touch()
        product.symlink_to(tmp_path / "file")
    check_damaged(CompiledProduct, 1.0, product)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "deleted"])
def test_a_damaged_kernel(damage: str) -> None:
    scale = 20.0 + list(DAMAGE).index(damage)
    entry = compile_one(scale)
    (kernel,) = [so for so in entry.rglob("*.so") if "main" in so.name]
    DAMAGE[damage](kernel)
    check_damaged(CompiledCached, scale, entry)


def test_what_is_new_in_an_entry_is_not_opened(product: Path) -> None:
    (product / "inductor" / "more.py").write_text("raise SystemExit")
    with counters.expect(graphs=0, artifact_loads=1):
        start_anew(1.0, CompiledProduct)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("shutil.copyfile", OSError(errno.ENOSPC, "No space left on device")),
        ("shutil.copyfile", OSError(errno.EDQUOT, "Disk quota exceeded")),
        ("shutil.copyfile", OSError(errno.EROFS, "Read-only file system")),
        (f"{store.__name__}.digests_of", PermissionError(errno.EACCES, "denied")),
    ],
)
def test_a_cache_that_cannot_be_written(
    function: str, error: OSError, monkeypatch: pytest.MonkeyPatch, product: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    shutil.rmtree(product)
    with monkeypatch.context() as broken:
        broken.setattr(function, fail)
        with counters.expect(graphs=1), warnings_of(store) as logged:
            start_anew(1.0, CompiledProduct)
    assert len(logged) == 1 and str(error.strerror) in logged[0]
    assert not list(root().glob(f"*{product.name}*"))
    start_anew(1.0, CompiledProduct)


def test_a_read_only_cache_is_read(product: Path) -> None:
    """As in a container image: nothing is written where entries are."""
    before = {path: path.stat().st_mtime_ns for path in product.rglob("*")}
    with counters.expect(graphs=0, artifact_loads=1), warnings_of(store) as logged:
        start_anew(1.0, CompiledProduct)
    assert logged == []
    assert {path: path.stat().st_mtime_ns for path in product.rglob("*")} == before


def test_a_faster_process_keeps_its_entry(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that compile the same at once: the first one done is kept."""
    theirs = product.with_name("theirs")
    product.rename(theirs)
    compile_it = shared_graph.SharedGraph._compile

    def overtaken(*args: Any) -> Any:
        compiled = compile_it(*args)
        theirs.rename(product)
        return compiled

    inode = (theirs / cache.ARTIFACT).stat().st_ino
    monkeypatch.setattr(shared_graph.SharedGraph, "_compile", overtaken)
    with counters.expect(graphs=1), warnings_of(store) as logged:
        start_anew(1.0, CompiledProduct)
    assert logged == []
    assert (product / cache.ARTIFACT).stat().st_ino == inode


def test_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_one(12.0)
    before = entries()
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    for scale in (12.0, 13.0):
        with counters.expect(graphs=1, artifact_loads=0, artifact_misses=0):
            start_anew(scale)
    assert entries() == before


@support_torch_compile(
    dynamic_arg_dims={"x": 0}, is_encoder=True, use_aot_compile=False
)
class CompiledNotKept(CompiledCached):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).sin() * self.scale


def test_a_class_that_is_not_kept() -> None:
    for _ in range(2):
        with counters.expect(graphs=1, artifact_loads=0, artifact_misses=0):
            start_anew(1.0, CompiledNotKept)
    assert entries(CompiledNotKept) == set()


MODULE = """
import os
import torch
import torch.nn as nn
import helper
from vllm_mmc.compilation.decorators import support_torch_compile
from mmc_testing.logs import warnings_of

SWITCH = os.environ.get("SWITCH", "off")


@support_torch_compile(dynamic_arg_dims={"x": 0})
class CompiledEdited(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return helper.act(x) if SWITCH == "off" else -helper.act(x)
"""
HELPER = """
import os

ADD = int(os.environ.get("ADD", "0"))

def act(x):
    return {expression} + ADD
"""
MAIN = """
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from edited import CompiledEdited
from vllm_mmc.compilation.counters import counters

with set_current_vllm_config(VllmConfig()):
    value = CompiledEdited()(torch.full((3,), 2.0))[0].item()
print(value, counters.graphs, counters.artifact_loads)
"""


def test_what_no_instance_shows_counts_too(tmp_path: Path) -> None:
    """The source of any traced file, and any global that was read while tracing.

    Also in a function that the region only calls, and each in a fresh process.
    """

    def run(**environ: str) -> list[str]:
        path = f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"
        result = subprocess.run(
            [sys.executable, "-c", MAIN],
            env=os.environ | {"PYTHONPATH": path} | environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.splitlines()[-1].split()

    def write(expression: str) -> None:
        (tmp_path / "edited.py").write_text(MODULE)
        (tmp_path / "helper.py").write_text(HELPER.format(expression=expression))

    write("x + 1")
    assert run() == ["3.0", "1", "0"]
    assert run(SWITCH="on", ADD="4") == ["-7.0", "1", "0"]
    assert run(SWITCH="on", ADD="4") == ["-7.0", "0", "1"]
    write("x * 5")
    assert run(SWITCH="on", ADD="4") == ["-14.0", "1", "0"]


# ---------------------------------------------------------------- explain


def missed(scale: float, cls: type[nn.Module] = CompiledCached) -> list[str] | None:
    """What `vllm-mmc cache explain` says of one region."""
    told: list[list[str] | None] = []
    with (
        store.explain_lookups(
            lambda entry, changed: told.append(why_missed(entry, changed))
        ),
        counters.expect(graphs=0, artifact_loads=0, fallbacks=0),
    ):
        start_anew(scale, cls)
    (reasons,) = told
    return reasons


def test_explain_a_hit() -> None:
    compile_one(30.0)
    assert missed(30.0) is None


def test_explain_another_structure() -> None:
    compile_one(31.0)
    (reason,) = missed(31.5) or []
    assert (
        reason.startswith("structure/")
        and "'31.0' -> '31.5'" in reason
        or ("-> '31.5'" in reason)
    )


def test_explain_another_setting() -> None:
    compile_one(32.0)
    other = VllmConfig(
        compilation_config=CompilationConfig(custom_ops=["all"]),
        additional_config={"vllm_mmc": {"parity_check": "first"}},
    )
    with set_current_vllm_config(other):
        reasons = missed(32.0) or []
    assert any(r.startswith("compilation_config.custom_ops: ") for r in reasons)
    assert any(
        r.startswith("additional_config: {} -> ") and "parity_check" in r
        for r in reasons
    )


def test_explain_what_the_key_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = compile_one(33.0)
    for name, content, reason in (
        (cache.SOURCES, {__name__: "0"}, "source of "),
        (cache.CAPTURED_GLOBALS, {"G['HIDDEN']": "9"}, "global G['HIDDEN']: 9 -> 8"),
    ):
        before = (entry / name).read_text()
        (entry / name).write_text(json.dumps(content))
        assert (missed(33.0) or [""])[0].startswith("damaged: ")
        monkeypatch.setattr(cache, "damage", lambda _: None)
        assert (missed(33.0) or [""])[0].startswith(reason)
        monkeypatch.undo()
        (entry / name).write_text(before)
    assert missed(33.0) is None


def test_explain_with_nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class CompiledNew(CompiledCached):
        pass

    support = support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
    assert missed(1.0, support(CompiledNew)) == ["no entry of CompiledNew is kept yet"]
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    (reason,) = missed(1.0) or []
    assert "VLLM_DISABLE_COMPILE_CACHE" in reason
