# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What `vllm-mmc demo` calls a difference, and its table; no engine is started."""

import argparse
import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_mmc.catalog import CATALOG
from vllm_mmc.cli import demo
from vllm_mmc.cli.main import main
from vllm_mmc.demo import families, media, offered
from vllm_mmc.demo.probe import Findings

ROOT = Path(__file__).parents[2]

STOCK = Findings(
    model="vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VLForConditionalGeneration",
    tokens=[[1, 2], [3]],
    embeddings=[np.zeros((4, 2), np.float32), np.ones((6, 2), np.float32)],
    start_seconds=1.0,
    compile_seconds=0.0,
    graphs=0,
    artifact_loads=0,
    encoder_ms=1.0,
)
OURS = dataclasses.replace(STOCK, model="vllm_mmc.models.qwen2_5_vl:Compiled")


def differences(**changes: Any) -> list[str]:
    warm = dataclasses.replace(OURS, **changes)
    return demo.differences(demo.RUNS, [STOCK, OURS, warm])


def shifted(by: float) -> list[np.ndarray]:
    first, second = (array.copy() for array in STOCK.embeddings)
    second[5, 1] += by
    return [first, second]


def test_equal_findings_are_no_difference() -> None:
    assert differences() == []
    assert differences(embeddings=shifted(demo.TOLERANCE / 2)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [[1, 2], [4]]}, r"warm cache: prompt 2: \[4\], eager \[3\]"),
        ({"embeddings": shifted(2 * demo.TOLERANCE)}, "differ by 0.0002"),
        ({"embeddings": shifted(np.nan)}, "differ by nan"),
        ({"embeddings": STOCK.embeddings[:1]}, "differ by inf"),
        ({"embeddings": []}, "differ by inf"),
        ({"model": STOCK.model}, r"loaded vllm\.model.*expected one of vllm_mmc\."),
    ],
)
def test_a_difference_is_reported(changes: dict[str, Any], message: str) -> None:
    (problem,) = differences(**changes)
    assert re.search(message, problem), problem


def test_table_shows_each_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = dataclasses.replace(OURS, graphs=3, tokens=[[1, 2], [4]])
    rows = demo._rows([STOCK, cold, OURS])
    assert ["answers equal to eager", "2 of 2", "1 of 2", "2 of 2"] in rows
    assert ["largest embedding difference", "-", "0.0e+00", "0.0e+00"] in rows
    assert ["encoder graphs compiled", "0", "3", "0"] in rows
    demo.print_table(["", "a", "b", "c"], rows)
    assert "1 of 2" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.table", None)
    demo.print_table(["", "a", "b", "c"], rows)
    plain = capsys.readouterr().out.splitlines()
    assert len(plain) == 1 + len(rows)
    assert " ".join(plain[2].split()) == "answers equal to eager 2 of 2 1 of 2 2 of 2"


def test_depth_must_hold_both_kinds_of_block() -> None:
    assert demo._depth("2") == 2
    with pytest.raises(argparse.ArgumentTypeError, match="at least 2"):
        demo._depth("1")


def test_all_families_in_a_checkout_and_two_in_a_wheel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(offered()) == {entry.family for entry in CATALOG}
    monkeypatch.setitem(sys.modules, "mmc_testing", None)
    assert set(offered()) == set(families.FAMILIES)
    for name in offered():
        assert families.family(name) is families.FAMILIES[name]


def test_what_to_install_is_said_before_an_engine_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setattr(demo, "run_case", lambda *_: pytest.fail("an engine starts"))
    assert main(["demo", "--model", "whisper"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vllm-mmc demo: ")
    assert line.endswith("pip install 'vllm-mmc[demo]'")


def test_the_media_are_shipped_and_their_sources_named() -> None:
    sources = (media.DATA / "SOURCES.txt").read_text()
    for path in media.DATA.iterdir():
        assert path.name == "SOURCES.txt" or f"\n{path.name}\n" in sources
    assert media.photograph().size == (512, 600)
    samples = media.speech(10.7)
    assert samples.shape == (171200,) and 0.5 < np.abs(samples).max() <= 1
    assert np.abs(samples[:1600]).max() > 0.1  # no silence at the start
    assert np.array_equal(media.speech(12.0)[171200:], samples[: 192000 - 171200])
