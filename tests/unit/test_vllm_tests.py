# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The table of vLLM's own tests; `make test-upstream` runs them."""

import tomllib
from pathlib import Path

import pytest
from vllm_tests import DEFAULTS, TABLE, copy

from mmc_testing.stand_in import STAND_INS
from vllm_mmc.catalog import CATALOG

ROWS = tomllib.loads(TABLE.read_text())


def test_the_table_says_what_it_must() -> None:
    rows = [{**DEFAULTS, **row} for row in ROWS["test"]]
    assert {row["ours"] for row in rows} == {"", *STAND_INS}
    assert {row["checkpoint"] for row in rows} <= {"", *(e.family for e in CATALOG)}
    files = [row["file"] for row in rows]
    assert len(files) == len({*files, *ROWS["left_out"]}) - len(ROWS["left_out"])
    for row in rows:
        assert row.keys() == {"file", *DEFAULTS}
        assert all(row["without"].values())
    assert all(ROWS["left_out"].values())


def test_text_is_replaced_each_time_anew(tmp_path: Path) -> None:
    file = tmp_path / "tests/test_a.py"
    file.parent.mkdir()
    file.write_text('DEVICE = "cuda"\n')
    for device in ("cpu", "meta"):
        copy({"file": "tests/test_a.py", "text": {'"cuda"': f'"{device}"'}}, tmp_path)
        assert file.read_text() == f'DEVICE = "{device}"\n'
    with pytest.raises(ValueError, match="tests/test_a.py does not have: xpu"):
        copy({"file": "tests/test_a.py", "text": {"xpu": "cpu"}}, tmp_path)
