# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Kernels lie where the user points, and nothing is left there."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.logs import warnings_of
from vllm_mmc.cache import work_directory as module
from vllm_mmc.cache.work_directory import INDUCTOR, work_directory
from vllm_mmc.compilation import shared_graph
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv(INDUCTOR, raising=False)
    monkeypatch.setattr(module, "_check_vector_instructions", lambda _: None)


def used(tmp_path: Path) -> str:
    """Where the work directory is made, relative to `tmp_path`."""
    before = os.environ.get(INDUCTOR)
    with work_directory("Region-0") as work_dir:
        assert os.environ[INDUCTOR] == str(work_dir / "inductor")
        assert list(work_dir.iterdir()) == []
    assert os.environ.get(INDUCTOR) == before
    assert work_dir.parent.name.startswith(".vllm_mmc-work-")
    assert work_dir.parent.stat().st_mode & 0o777 == 0o700
    return str(work_dir.parent.parent.relative_to(tmp_path))


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside_cache = "vllm/torch_compile_cache"
    assert used(tmp_path) == beside_cache
    for name, expected in (
        ("kernels", "kernels"),
        ("tmp/torchinductor_root", beside_cache),  # torch sets this itself
        ("vllm/torch_compile_cache/f00/inductor_cache", beside_cache),  # vLLM does
    ):
        monkeypatch.setenv(INDUCTOR, str(tmp_path / name))
        assert used(tmp_path) == expected


def mount_noexec(monkeypatch: pytest.MonkeyPatch, *directories: Path) -> None:
    flags = {str(directory): os.ST_NOEXEC for directory in directories}
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda path: SimpleNamespace(f_flag=flags.get(str(path), 0)),
    )


def test_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, tmp = tmp_path / "kernels", tmp_path / "tmp"
    cache = tmp_path / "vllm/torch_compile_cache"
    monkeypatch.setenv(INDUCTOR, str(kernels))
    mount_noexec(monkeypatch, tmp)
    assert used(tmp_path) == "kernels"  # whatever TMPDIR is like
    module._made.clear()
    mount_noexec(monkeypatch, kernels, tmp)
    with warnings_of(module) as logged:
        assert used(tmp_path) == "vllm/torch_compile_cache"
    (warning,) = logged
    assert str(kernels) in warning and "noexec" in warning
    module._made.clear()
    mount_noexec(monkeypatch, kernels, cache)
    assert used(tmp_path) == "tmp"
    module._made.clear()
    mount_noexec(monkeypatch, kernels, cache, tmp)
    with pytest.raises(OSError, match="no directory to load kernels from") as caught:
        used(tmp_path)
    for directory in (kernels, cache, tmp):
        assert f"{directory} (its file system is mounted noexec)" in str(caught.value)


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").write_text("a file, so that root cannot write here either")
    assert used(tmp_path) == "tmp"


def test_a_path_that_the_compiler_would_get_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a cache", "it's", "back\\slash"):
        monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / name))
        assert used(tmp_path) == "tmp"
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "ü"))
    assert used(tmp_path) == "ü/torch_compile_cache"
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "two words"))
    with warnings_of(module) as logged:
        assert used(tmp_path) == "ü/torch_compile_cache"
    assert "two words" in logged[0] and "in pieces" in logged[0]


def test_a_relative_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_CACHE_ROOT", "here")
    assert used(tmp_path) == "here/torch_compile_cache"
    # As vLLM sets it.
    monkeypatch.setenv(INDUCTOR, "here/torch_compile_cache/f00/inductor_cache")
    assert used(tmp_path) == "here/torch_compile_cache"


def test_without_vllm_cache_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_CACHE_ROOT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert used(tmp_path) == "xdg/vllm/torch_compile_cache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert used(tmp_path) == "home/.cache/vllm/torch_compile_cache"


def test_a_uid_that_no_passwd_file_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert used(tmp_path) == "vllm/torch_compile_cache"
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert used(tmp_path) == "~/.cache/vllm/torch_compile_cache"


def test_what_was_left_behind(tmp_path: Path) -> None:
    parent = tmp_path / "vllm/torch_compile_cache"
    left, held, new = (parent / f".vllm_mmc-work-{name}" for name in "abc")
    for directory in (left, held, new):
        directory.mkdir(parents=True)
        if directory != new:
            os.utime(directory, (0, 0))
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    used(tmp_path)
    os.close(lock)
    assert [d.exists() for d in (left, held, new)] == [False, True, True]


FORK = """
import os
import sys
from vllm_mmc.cache import work_directory as module
from vllm_mmc.cache.work_directory import work_directory

module._check_vector_instructions = lambda _: None
with work_directory("Region-0") as mine:
    pass
child = os.fork()
if child == 0:
    with work_directory("Region-0") as its:
        assert its != mine and its.is_dir()
    sys.exit()  # runs what is registered for the end, as it was inherited
assert os.waitpid(child, 0)[1] == 0
assert mine.is_dir()
print(mine)
"""


def test_a_forked_process_has_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, check=True
    )
    mine = Path(done.stdout.splitlines()[-1])
    assert mine.is_relative_to(tmp_path / "vllm")
    assert list(mine.parent.parent.glob(".*")) == []


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledMapped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2.5


def libraries() -> set[str]:
    """The kernels that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.partition("/")[2].removesuffix(" (deleted)") for line in lines}
    return {
        f"/{path}" for path in paths if ".main.so" in path or "vllm_mmc-work" in path
    }


def test_libraries_are_loaded_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled and loaded, while nothing may be loaded from TMPDIR."""
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "kernels"))
    config = VllmConfig(compilation_config=CompilationConfig())
    x = torch.randn(5, 8)
    with set_current_vllm_config(config), torch.inference_mode():
        for made in ({"graphs": 1}, {"graphs": 0, "artifact_loads": 1}):
            shared_graph._structures.clear()
            before = libraries()
            region = CompiledMapped()
            with counters.expect(fallbacks=0, **made):
                torch.testing.assert_close(region(x), region.forward(x))
            new = libraries() - before
            assert new or made["graphs"] == 0
            assert all(path.startswith(str(tmp_path / "kernels")) for path in new)
