# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Pages say what the code says; links, and the tests they name, are there."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from vllm_mmc.compat import vllm_version
from vllm_mmc.compilation.errors import FIXES

ROOT = Path(__file__).parents[2]
FILE_OF_VLLM = "tests/compile/fullgraph/test_multimodal_compile.py"
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "upstream/*.md")
    for path in ROOT.glob(pattern)
]


@pytest.mark.pages
def test_made_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text() == page(), f"run `make docs`: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_of_the_decorator_page_exist() -> None:
    page = (ROOT / "docs/decorator.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert named and len(named) == page.count("::")
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_files_named_in_skip_reasons_exist() -> None:
    """So do the tests that comments name."""
    tests = [*ROOT.glob("tests/**/*.py")]
    named = [(t, n) for t in tests for n in _files_in_skip_reasons(t.read_text())]
    for test in tests:
        for name in re.findall(r"[\w/]*\btest_\w+\.py\b", test.read_text()):
            named.append((test, name))
    assert named
    for test, name in named:
        if name == FILE_OF_VLLM:
            continue
        found = any((base / name).exists() for base in (ROOT, test.parent))
        found = found or ("/" not in name and any(ROOT.glob(f"tests/**/{name}")))
        assert found, f"{test.name} names {name}"


def test_a_skip_reason_that_names_a_file_is_read() -> None:
    source = """
pytest.skip("see a.py")
@pytest.mark.skipif(True, reason=f"{x}: docs/b.md says why")
def test(): pytest.importorskip("c", reason="tools/c.json")
"""
    names = ["a.py", "docs/b.md", "tools/c.json"]
    assert sorted(_files_in_skip_reasons(source)) == sorted(names)


def _files_in_skip_reasons(source: str) -> list[str]:
    texts = [
        text.value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and "skip" in ast.unparse(call.func)
        for text in ast.walk(call)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
    ]
    return re.findall(r"[\w./-]+\.(?:py|md|json|toml|yaml)\b", "\n".join(texts))


def test_every_known_fix_is_on_its_page() -> None:
    page = " ".join((ROOT / "docs/seeing.md").read_text().split())
    for fix in FIXES.values():
        assert f"| {fix} |" in page


def test_each_supported_release_is_in_the_matrix() -> None:
    (low, high) = vllm_version.TESTED
    supported = {f"{low[0]}.{minor}" for minor in range(low[1], high[1])}
    workflow = yaml.safe_load((ROOT / ".github/workflows/matrix.yml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert {v.rpartition(".")[0] for v in matrix["vllm"]} == supported
    assert [run["vllm"] for run in matrix["include"]] == sorted(matrix["vllm"])
    (cuda,) = re.findall(r'"vllm\[audio\](.*)"', (ROOT / "pyproject.toml").read_text())
    assert cuda == ">={}.{},<{}.{}".format(*low, *high)
