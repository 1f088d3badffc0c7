# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What `vllm-mmc demo` calls a difference. The engines themselves: tests/e2e."""

import argparse
import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from vllm_mmc.cli import demo
from vllm_mmc.testing.probe import Findings

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
    return demo.differences(demo.CASES, [STOCK, OURS, warm])


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


def test_plain_table_without_rich(capsys: pytest.CaptureFixture[str]) -> None:
    demo._print_plain_table(("a", "b\nc"), [("wide cell", "1"), ("x", "22")])
    assert capsys.readouterr().out == "a          b c\nwide cell  1\nx          22\n"


def test_depth_must_hold_both_kinds_of_block() -> None:
    assert demo._depth("2") == 2
    with pytest.raises(argparse.ArgumentTypeError, match="at least 2"):
        demo._depth("1")
