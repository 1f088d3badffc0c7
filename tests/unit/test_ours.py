# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""upstream/ours.md knows each thing that was mended, and each difference from vLLM."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows(title: str) -> dict[str, str]:
    """The table below `title` in ours.md: first cell -> second cell."""
    page = (ROOT / "upstream/ours.md").read_text()
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def fixed() -> list[str]:
    """Each entry under "Fixed", in one line."""
    sections = re.findall(
        r"\n### Fixed\n(.*?)(?=\n##|\Z)",
        (ROOT / "CHANGELOG.md").read_text(),
        flags=re.DOTALL,
    )
    entries = re.split(r"\n- ", "\n".join(sections))[1:]
    return [" ".join(entry.split()) for entry in entries]


def test_each_fixed_entry_has_one_row() -> None:
    begins = rows("Fixed")
    found = {entry: [b for b in begins if entry.startswith(b)] for entry in fixed()}
    assert not {entry: b for entry, b in found.items() if len(b) != 1}
    assert {b for (b,) in found.values()} == set(begins), "a row without an entry"


def test_each_difference_on_purpose_has_a_row() -> None:
    package = ROOT / "vllm_mmc"
    said = {
        f"`{path.relative_to(package)}`"
        for room in ("models", "encoder", "compat", "layers")
        for path in (package / room).glob("*.py")
        if re.search(r"differs?\s+from\s+stock\s+on\s+purpose", path.read_text())
    }
    listed = rows("What differs from vLLM on purpose")
    assert said <= set(listed)
    assert not [place for place in listed if not (package / place.strip("`")).exists()]


def test_each_row_has_a_folder_or_a_reason() -> None:
    folders = {path.parent.name for path in (ROOT / "upstream").glob("*/pr.md")}
    cells = [*rows("Fixed").values()]
    cells += rows("What differs from vLLM on purpose").values()
    for cell in cells:
        named = set(re.findall(r"`(\w+)`", cell))
        assert named or re.search(r"ours alone\b.*: \w+", cell), cell
        assert named <= folders, f"no folder: {named - folders}"
