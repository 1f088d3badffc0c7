# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Patches of upstream/models/ are made of our files; their own tests are there."""

import shutil
from pathlib import Path

import make_patches
import pytest

pytestmark = pytest.mark.pages


@pytest.mark.parametrize("family", make_patches.FAMILIES)
def test_what_is_committed_is_what_the_tool_makes(family: str) -> None:
    committed = (make_patches.PATCHES / family / "change.patch").read_text()
    assert committed == make_patches.patch(family)
    assert "mmc" not in committed


def forget() -> None:
    make_patches.ours.cache_clear()
    make_patches.after.cache_clear()


def test_a_change_of_ours_changes_the_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = next(iter(make_patches.FAMILIES))
    before = make_patches.patch(family)
    shutil.copytree(make_patches.ROOT / "vllm_mmc" / "models", tmp_path / "models")
    file = tmp_path / "models" / "whisper.py"
    old = "x = x + self.mlp(self.final_layer_norm(x))"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, old.replace("+", "-")))
    monkeypatch.setattr(make_patches, "PACKAGE", tmp_path)
    forget()
    try:
        after = make_patches.patch(family)
    finally:
        forget()
    assert after == before.replace(old, old.replace("+", "-")) != before


def test_an_edit_that_no_longer_fits_is_an_error() -> None:
    with pytest.raises(ValueError, match="occurs 0 times"):
        make_patches.edited("text", (("gone", ""),))
