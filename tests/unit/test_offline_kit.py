# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Wheels in parts, and together again, without pip and without internet."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import offline_kit
import pytest

FREEZE = """\
torch==2.11.0+cu130
triton==3.6.0
Typing_Extensions==4.12.0
-e git+somewhere#egg=mine
"""


def test_what_is_there_is_left_out() -> None:
    have = offline_kit.read_freeze(FREEZE)
    assert have == {
        "torch": "2.11.0+cu130",
        "triton": "3.6.0",
        "typing-extensions": "4.12.0",
    }
    needed = {"vllm": "0.26.0", "torch": have["torch"], "typing-extensions": "4.13.0"}
    left = {"typing-extensions": "4.13.0", "vllm": "0.26.0"}
    assert offline_kit.missing(needed, have) == left


def test_what_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    """By pip itself, from a directory instead of an index."""
    index = tmp_path / "index"
    index.mkdir()
    for name, version in {"vllm": "0.26.0", "torch": "2.12.0", "other": "1.0"}.items():
        offline_kit.stand_in(name, version, index)
    options = [*offline_kit.target_options(28), "--no-index"]
    options += [f"--find-links={index}", "torch"]
    have = offline_kit.read_freeze(FREEZE)
    needed = offline_kit.resolve(["vllm"], have, options)
    assert needed == {"vllm": "0.26.0", "torch": "2.11.0+cu130"}
    assert offline_kit.missing(needed, have) == {"vllm": "0.26.0"}
    with pytest.raises(offline_kit.KitError, match="conflict|satisfy|requested"):
        offline_kit.resolve(["torch>=2.12"], have, options)


def test_options_name_the_oldest_glibc() -> None:
    options = offline_kit.target_options(28)
    machine = platform.machine()
    assert f"--platform=manylinux_2_28_{machine}" in options
    assert f"--platform=manylinux_2_31_{machine}" not in options


def test_a_requirement_of_this_python_is_there(tmp_path: Path) -> None:
    """pip answers markers for the Python that runs it, whatever its options say."""
    for name in ("six", "other"):
        offline_kit.stand_in(name, "1.0", tmp_path)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = offline_kit.resolve(
        [f"six; python_version == '{here}'", f"other; python_version != '{here}'"],
        {},
        [*offline_kit.target_options(28), "--no-index", f"--find-links={tmp_path}"],
    )
    assert needed == {"six": "1.0"}


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    sizes = {"a.whl": 0, "b.whl": 99, "c.whl": 100, "d.whl": 250}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(i % 251 for i in range(size)))
    return [tmp_path / name for name in sizes]


def test_parts_are_small_and_join_again(wheels: list[Path], tmp_path: Path) -> None:
    kit, joined = tmp_path / "kit", tmp_path / "joined"
    offline_kit.split(wheels, kit, part=100)
    parts = [path for path in kit.iterdir() if path.suffix != ".json"]
    assert len(parts) == 5 and all(path.stat().st_size <= 100 for path in parts)
    # There is nothing there but Python.
    subprocess.run(
        [sys.executable, "-I", offline_kit.__file__, "join", kit, joined], check=True
    )
    for wheel in wheels:
        assert (joined / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize("damage", ["lost", "changed", "swapped"])
def test_damage_is_seen(
    damage: str,
    wheels: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kit, joined = tmp_path / "kit", tmp_path / "joined"
    offline_kit.split(wheels, kit, part=100)
    first, second = kit / "d.whl.001", kit / "d.whl.002"
    if damage == "lost":
        second.unlink()
    elif damage == "changed":
        second.write_bytes(bytes(100))
    else:
        manifest = json.loads((kit / offline_kit.MANIFEST).read_text())
        manifest["d.whl"]["parts"][:2] = [second.name, first.name]
        (kit / offline_kit.MANIFEST).write_text(json.dumps(manifest))
    assert offline_kit.main(["join", str(kit), str(joined)]) == 1
    said = capsys.readouterr().err
    assert ("missing d.whl.002" if damage == "lost" else "a part is damaged") in said
    assert not list(joined.glob("d.whl*")), "nobody installs it"


def test_a_kit_is_not_written_into_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "freeze").write_text(FREEZE)
    monkeypatch.setattr(offline_kit, "resolve", lambda *_: {"vllm": "0.26.0"})
    argv = ["make", "--have", f"{tmp_path}/freeze", "--into", str(tmp_path), "vllm"]
    assert offline_kit.main(argv) == 1
    printed = capsys.readouterr()
    assert printed.out == "vllm==0.26.0\n" and "is there already" in printed.err
