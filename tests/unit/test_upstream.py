# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Findings for vLLM are complete, their page is true, and `make upstream` can fail."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HOOKS = [
    path
    for path in sorted(ROOT.glob("vllm_mmc/compat/*.py"))
    if "\ndef applies(" in path.read_text()
]


def load() -> ModuleType:
    path = ROOT / "upstream/check.py"
    spec = importlib.util.spec_from_file_location("check_upstream", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CHECK = load()
FINDINGS = CHECK.findings()


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "upstream/README.md").read_text()
    assert page == CHECK.readme(), "run `python upstream/check.py --readme`"


def test_all_findings_have_a_state() -> None:
    states = json.loads((ROOT / "upstream/states.json").read_text())
    for release, of in states.items():
        assert of.keys() <= FINDINGS.keys(), release
        assert set(of.values()) <= CHECK.MEANING.keys()
    assert set().union(*states.values()) == FINDINGS.keys()


@pytest.mark.parametrize("finding", FINDINGS.values(), ids=lambda one: one.name)
def test_a_folder_is_complete(finding: Any) -> None:
    folder = ROOT / "upstream" / finding.name
    text = (folder / "pr.md").read_text()
    for heading in ("Purpose", "Why this is no duplicate", "Test plan and result"):
        assert f"\n## {heading}\n" in text
    assert "\n## Disclosure\n\nAn AI wrote" in text
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    if finding.patch is None:
        assert names in ({"pr.md", "repro.py"}, {"pr.md"})
        return
    pair = {"pair.py"} if finding.needs else set()
    assert names == {"pr.md", "repro.py", "test.py", "change.patch"} | pair
    assert "Signed-off-by: NAME <ADDRESS>" in text
    assert '"""For tests/' in (folder / "test.py").read_text()
    patch = (folder / "change.patch").read_text()
    patch = re.sub(r"^(--- a|\+\+\+ b)/vllm/.*\n", "", patch, flags=re.MULTILINE)
    for hunk in re.split(r"^@@.*\n", patch, flags=re.MULTILINE)[1:]:
        kinds = "".join(line[:1] or " " for line in hunk.splitlines())
        assert re.fullmatch(r" ?[+-]+( {1,2}[+-]+)* ?", kinds), (
            "more than one of context"
        )


@pytest.mark.parametrize("path", HOOKS, ids=lambda path: path.stem)
def test_a_hook_names_what_ends_it(path: Path) -> None:
    (line,) = re.findall(r"^Upstream: (.*)$", path.read_text(), flags=re.MULTILINE)
    if not re.match(r"no folder[,:] \w+", line):
        folder = re.fullmatch(r"upstream/(\w+)", line)
        assert folder and folder[1] in FINDINGS, line


# ---------------------------------------------------------------- the check itself

PR = "---\nbundle: B\n{needs}---\n# A title\n\nSee #12 and a/b#34.\n"
PATCH = """\
--- a/vllm/{file}.py
+++ b/vllm/{file}.py
@@ -1 +1 @@
-{before}
+{after}
"""
REPRO = "import sys\nfrom vllm.number import N\nprint(N)\nsys.exit(N != 2)\n"
TEST = "from vllm.number import N\n\ndef test_it():\n    assert N == 2\n"
PAIR = (
    "import sys, vllm.number as n, vllm.key as k\nsys.exit(n.N == 2 and not k.SAFE)\n"
)


@pytest.fixture
def findings(tmp_path: Path) -> Path:
    """A package "vllm" of another kind, and two findings; one needs the other."""
    package = tmp_path / "site/vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "_version.py").write_text("__version__ = version = '1.2.0'\n")
    (package / "number.py").write_text("N = 1\n")
    (package / "key.py").write_text("SAFE = False\n")
    number, key = tmp_path / "upstream/number", tmp_path / "upstream/key"
    for folder, needs in ((number, "needs: key\n"), (key, "")):
        folder.mkdir(parents=True)
        (folder / "pr.md").write_text(PR.format(needs=needs))
    patch = PATCH.format(file="number", before="N = 1", after="N = 2")
    (number / "change.patch").write_text(patch)
    (number / "repro.py").write_text(REPRO)
    (number / "test.py").write_text(TEST)
    (number / "pair.py").write_text(PAIR)
    patch = PATCH.format(file="key", before="SAFE = False", after="SAFE = True")
    (key / "change.patch").write_text(patch)
    for name, text in (("repro.py", REPRO), ("test.py", TEST)):
        text = text.replace("vllm.number import N", "vllm.key import SAFE")
        text = text.replace("N == 2", "SAFE").replace("N != 2", "not SAFE")
        (key / name).write_text(text.replace("print(N)", "print(SAFE)"))
    return tmp_path


def check(findings: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output, with those findings and that package."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import check\n"
        "from pathlib import Path\n"
        "check.HERE = Path(sys.argv.pop(1))\n"
        "check.STATES = check.HERE / 'states.json'\n"
        "check.PRELOADED = ('pytest',)\n"
        "sys.exit(check.main())"
    )
    folders = ROOT / "upstream", findings / "upstream"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders), *arguments],
        # A patch within a second and of the same size would find bytecode of before.
        env=os.environ
        | {
            "PYTHONPATH": str(findings / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_what_is_found_is_recorded(findings: Path) -> None:
    file = findings / "site/vllm/number.py"
    before = file.stat()
    status, said = check(findings, "--record")
    assert status == 0, said
    assert said.count("the patch mends it") == 2
    assert file.read_text() == "N = 1\n"
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )
    states = json.loads((findings / "upstream/states.json").read_text())
    assert states == {"1.2.0": {"key": "wrong", "number": "wrong"}}
    page = (findings / "upstream/README.md").read_text()
    assert "| [A title](key/pr.md) | wrong | [#12]" in page
    assert "(number/pr.md), never without [key](key/pr.md) | wrong |" in page
    assert "[a/b#34](https://github.com/a/b/issues/34)" in page
    assert check(findings)[0] == 0
    assert sorted(path.name for path in findings.iterdir()) == ["site", "upstream"]


def test_what_is_fixed_upstream_is_told(findings: Path) -> None:
    assert check(findings, "--record")[0] == 0
    version = findings / "site/vllm/_version.py"
    version.write_text("__version__ = version = '1.3.0'\n")
    (findings / "site/vllm/number.py").write_text("N = 2\n")
    (findings / "upstream/number/pr.md").write_text(PR.format(needs=""))
    status, said = check(findings, "number", "--record")
    assert status == 0 and "fixed upstream in this release" in said
    states = json.loads((findings / "upstream/states.json").read_text())
    assert states["1.3.0"] == {"number": "right"}
    # What is not as recorded is an error.
    (findings / "site/vllm/number.py").write_text("N = 1\n")
    status, said = check(findings, "number")
    assert status == 1 and "not as in states.json: number" in said


BREAKS = {
    "patch that mends nothing": (
        "number/change.patch",
        PATCH.format(file="number", before="N = 1", after="N = 3"),
        "repro.py fails with the patch",
    ),
    "patch of another release": (
        "number/change.patch",
        PATCH.format(file="number", before="N = 0", after="N = 2"),
        "does not apply",
    ),
    "repro that raises an error": (
        "number/repro.py",
        "import vllm.no_such_module",
        "repro.py does not work",
    ),
    "test that cannot fail": (
        "number/test.py",
        "def test_it():\n    pass\n",
        "test.py does not fail without the patch",
    ),
    "test that cannot be collected": (
        "number/test.py",
        "import vllm.no_such_module",
        "test.py does not fail without the patch",
    ),
    "pair that does not need it": (
        "number/pair.py",
        "",
        "without 0, alone 0, both 0",
    ),
    "two patches of one line": (
        "key/change.patch",
        PATCH.format(file="number", before="N = 1", after="N = 4")
        + PATCH.format(file="key", before="SAFE = False", after="SAFE = True"),
        "after the others it does not apply",
    ),
}


@pytest.mark.parametrize(("file", "text", "told"), BREAKS.values(), ids=BREAKS)
def test_the_check_can_fail(findings: Path, file: str, text: str, told: str) -> None:
    (findings / "upstream" / file).write_text(text)
    if told.startswith("after"):
        (findings / "upstream/number/pr.md").write_text(PR.format(needs=""))
        (findings / "upstream/number/pair.py").unlink()
    status, said = check(findings)
    assert status == 1 and told in said, said
