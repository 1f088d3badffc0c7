# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A family is written down in one place, plus a file if its arithmetic differs.

A place is a Python file that names the family: as an element of a list, a key, an
argument, in a comparison, as a function or in the name of the file. `FAMILIES["name"]`
reads what stands elsewhere, so it makes no place, and neither does the fixture that a
test asks for. A value of a dict makes none: in configs stand published names.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmc_testing.recipes import RECIPES
from vllm_mmc.catalog import CATALOG

ROOT = Path(__file__).parents[2]
ROOMS = ("vllm_mmc", "mmc_testing", "tests", "benchmarks")
APART = (
    "tests/unit/test_places.py",
    "mmc_testing/remote_code/",  # published names
    # Names of tower tests, of which each architecture of vLLM has one.
    "mmc_testing/census.py",
    "tests/encoder/",
)

# A new family has its row in the catalogue, its recipe, and the file of its model if
# the row names no mixin. Places beside these: the numbers may only go down, but for
# tests of whole servers, which name the few families that they serve.
BESIDE = {
    "qwen2_5_vl": 10,
    "llama4": 5,
    "whisper": 9,
    "qwen3_asr": 5,
    "qwen3_asr_realtime": 1,
    "qwen3_asr_forced_aligner": 1,
    "qwen2_audio": 7,
    "audioflamingo3": 1,
    "qwen2_5_omni": 3,
    "qwen3_omni": 1,
    "clef_omni": 2,
    "ultravox": 1,
    "voxtral": 1,
    "kimi_audio": 2,
    "moss_transcribe_diarize": 1,
    "minicpmo": 3,
}
# A new surveyed family has its recipe alone. These are picked out by a benchmark, by
# tests of one recipe or of exchanged classes, or to be run by the classes of
# transformers as well.
PICKED = {
    "fireredasr2": 2,
    "gemma3": 1,
    "gemma3n": 1,
    "gemma4": 1,
    "gemma4_audio": 1,
    "glm4_1v": 1,
    "granite_speech": 2,
    "internvl": 1,
    "llava_clip": 1,
    "llava_siglip": 1,
    "qwen2_vl": 2,
    "qwen3_vl": 1,
}


@pytest.fixture(scope="module")
def places() -> dict[str, set[str]]:
    """Name -> files that write it down."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, set[str]] = {}
    for file in listed.stdout.split():
        if file.endswith(".py") and not file.startswith(APART):
            for name in written(ROOT / file):
                found.setdefault(name, set()).add(file)
    return found


def written(file: Path) -> Iterator[str]:
    """Returns what a file writes down: its own name, its functions, its texts."""
    yield file.stem.removeprefix("test_")
    elsewhere: set[ast.AST | None] = set()
    # Breadth first: what is around a text comes before it.
    for node in ast.walk(ast.parse(file.read_text()) if file.exists() else ast.Pass()):
        if isinstance(node, ast.Subscript):
            elsewhere.add(node.slice)
        elif isinstance(node, ast.Dict):
            elsewhere.update(node.values)
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and node not in elsewhere:
            yield str(node.value)


def test_of_a_family_with_a_row(places: dict[str, set[str]]) -> None:
    found = {}
    for entry in CATALOG:
        files = places[entry.family]
        assert "vllm_mmc/catalog.py" in files
        found[entry.family] = len(files) - (2 if entry.mixin else 3)
    assert {family: n for family, n in found.items() if n} == BESIDE, {
        family: sorted(places[family])
        for family in found
        if found[family] != BESIDE.get(family, 0)
    }


def test_of_a_surveyed_family(places: dict[str, set[str]]) -> None:
    # Those of the classes of transformers are made of others, with a prefix.
    names = [name for name in RECIPES if not name.startswith("transformers_")]
    found = {name: len(places[name]) - 1 for name in names}
    assert {name: n for name, n in found.items() if n} == PICKED, {
        name: sorted(places[name])
        for name in names
        if found[name] != PICKED.get(name, 0)
    }
