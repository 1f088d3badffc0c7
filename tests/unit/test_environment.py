# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""docs/environment.md lists every environment variable that the package touches."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vllm_mmc"
NAME = re.compile(
    r"(ATEN|HF|MMC|OMP|PROMETHEUS|TOKENIZERS|TORCH[A-Z]*|VLLM|XDG)(_[A-Z0-9]+)+|HOME|TMPDIR"
)
# What reads a variable without naming it.
INDIRECT = {
    "expanduser": "HOME",
    "get_cpu_capability": "ATEN_CPU_CAPABILITY",
    "gettempdir": "TMPDIR",
    "march": "TORCHINDUCTOR_CPP_MARCH",
    "mkdtemp": "TMPDIR",
    "TemporaryDirectory": "TMPDIR",
}
# The settings, by their names.
COMPUTED = {"settings.py", "compat/envs.py"}

KEY = "tests/cache/test_instructions.py"
WORK = "tests/cache/test_work_directory.py"
# Variable -> a test of what the table says of it.
TESTS = {
    "ATEN_CPU_CAPABILITY": f"{KEY}::test_a_mixed_fleet_that_is_bounded_shares",
    "CXX": f"{KEY}::test_inductor_options_are_part_of_the_key",
    "HF_HUB_OFFLINE": "tests/e2e/test_demo_command.py::",
    "HOME": f"{WORK}::test_without_vllm_cache_root",
    "LOGNAME": f"{WORK}::test_a_uid_that_no_passwd_file_knows",
    "MMC_STARTED_BY": "tests/unit/test_metrics.py::test_a_process_that_ray_has_started",
    "OMP_NUM_THREADS": f"{KEY}::test_what_is_not_part_of_the_key",
    "PROMETHEUS_MULTIPROC_DIR": "tests/unit/test_metrics.py::test_several_api_servers",
    "TMPDIR": f"{WORK}::test_where_it_cannot_be",
    "TOKENIZERS_PARALLELISM": "tests/e2e/test_demo_command.py::",
    "TORCHINDUCTOR_*": f"{KEY}::test_inductor_options_are_part_of_the_key",
    "TORCHINDUCTOR_CACHE_DIR": f"{WORK}::test_where_it_is",
    "TORCHINDUCTOR_COMPILE_THREADS": f"{KEY}::test_what_is_not_part_of_the_key",
    "TORCHINDUCTOR_CPP_MARCH": f"{KEY}::test_what_the_compiler_is_told",
    "USER": f"{WORK}::test_a_uid_that_no_passwd_file_knows",
    "VLLM_CACHE_ROOT": f"{WORK}::test_a_relative_cache",
    "VLLM_DISABLE_COMPILE_CACHE": (
        "tests/cache/test_unkept.py::test_a_cache_that_is_switched_off"
    ),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "tests/e2e/test_cache_command.py::",
    "VLLM_LOGGING_LEVEL": "tests/e2e/test_demo_command.py::",
    "VLLM_MMC_*": "tests/unit/test_settings.py::",
    "VLLM_NO_USAGE_STATS": "tests/e2e/test_demo_command.py::",
    "VLLM_PLUGINS": "tests/unit/test_plugin_off.py::test_off",
    "VLLM_SERVER_DEV_MODE": "tests/unit/test_bench.py::test_each_load_finds",
    "VLLM_USE_V2_MODEL_RUNNER": "tests/unit/test_prove.py::test_the_whole_of_it",
    "XDG_CACHE_HOME": f"{WORK}::test_without_vllm_cache_root",
}


def table() -> set[str]:
    page = (ROOT / "docs/environment.md").read_text()
    (section,) = re.findall(r"## Variables\n(.*?)\n## ", page, re.DOTALL)
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| ")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def touched(file: Path) -> Iterator[str]:
    """The variables that a file names, and those it reads without naming them."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Attribute(ast.Name("envs"), name) if name.isupper():
                yield name
            case ast.Constant(str(name)) if NAME.fullmatch(name):
                yield name
            case ast.Attribute(_, name) if name in INDIRECT:
                yield INDIRECT[name]


def computed(file: Path) -> Iterator[str]:
    """Accesses of the environment whose variable is not told by the file alone."""
    source = file.read_text()
    constants = dict(re.findall(r'^([A-Z_]+) = "([A-Z_]+)"$', source, re.MULTILINE))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Subscript(of, key) if ast.unparse(of).endswith("environ"):
                pass
            case ast.Call(of, [key, *_]) if re.search(
                r"environ\.\w+$|getenv$", ast.unparse(of)
            ):
                pass
            case _:
                continue
        named = isinstance(key, ast.Constant) or ast.unparse(key) in constants
        if not named:
            yield ast.unparse(node)


def test_every_variable_is_in_the_table() -> None:
    names = {name for file in PACKAGE.rglob("*.py") for name in touched(file)}
    assert {"VLLM_CACHE_ROOT", "TMPDIR", "PROMETHEUS_MULTIPROC_DIR"} <= names
    listed = table()
    ours = {name for name in names if name.startswith("VLLM_MMC_")}
    assert sorted(names - ours - listed) == []


def test_no_variable_is_read_by_a_name_that_is_computed() -> None:
    files = {
        str(file.relative_to(PACKAGE)): list(computed(file))
        for file in PACKAGE.rglob("*.py")
    }
    assert {name for name, found in files.items() if found} <= COMPUTED, files


def test_every_row_has_a_test() -> None:
    assert table() == set(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_the_test_of_a_row_is_there(name: str) -> None:
    file, _, test = TESTS[name].partition("::")
    assert f"def {test or 'test_'}" in (ROOT / file).read_text()
