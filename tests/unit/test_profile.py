# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc profile`: reading logs, and what is proposed."""

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vllm_mmc.cli.main import main
from vllm_mmc.cli.profile import bars
from vllm_mmc.sizes.histogram import MAX_RANGES, Histogram, line, read

PREFIX = "(EngineCore pid=123) INFO 11-21 02:00:00 [shapes.py:40] "


def histogram(tokens: dict[int, int], up_to: dict[int, int] | None = None) -> Histogram:
    return Histogram(tokens=Counter(tokens), up_to=Counter(up_to or {}))


def said(tokens: dict[int, int], process: str = "a", prefix: str = PREFIX) -> str:
    return f"{prefix}{line(histogram(tokens), process)}\n"


# ---------------------------------------------------------------- reading


def test_the_last_line_of_every_process_counts() -> None:
    lines = [
        said({256: 1}, "a"),
        "INFO: 127.0.0.1 - GET /metrics\n",
        said({256: 5}, "b", prefix=""),
        said({256: 2, 64: 1}, "a", prefix="(Worker_TP1 pid=9) \x1b[0m"),
        said({256: 6, 1024: 1}, "b"),
    ]
    found = read(lines)
    assert found.histogram.tokens == {64: 1, 256: 8, 1024: 1}
    assert (found.processes, found.unreadable) == (2, 0)


@pytest.mark.parametrize("key", ["message", "log"])
def test_a_log_that_is_json(key: str) -> None:
    wrapped = json.dumps({"level": "INFO", key: said({256: 3}), "process": 1})
    assert read([wrapped]).histogram.tokens == {256: 3}


def test_counts_of_rounded_sizes() -> None:
    full = Histogram(max_exact=2)
    for tokens in (5, 6, 7, 8, 9, 5):
        full.add(tokens)
    assert full.tokens == {5: 2, 6: 1}
    assert full.up_to == {8: 2, 16: 1}
    again = read([line(full, "a"), line(full, "b")]).histogram
    assert again.tokens == {5: 4, 6: 2}
    assert again.up_to == {8: 4, 16: 2}


@pytest.mark.parametrize(
    "text",
    [
        "[mmc shapes]",
        "[mmc shapes] ",
        "[mmc shapes] nothing",
        '[mmc shapes] {"process": "a", "total": 3, "tokens": {"256": 3',
        "[mmc shapes] [1, 2]",
        "[mmc shapes] {}",
        '[mmc shapes] {"tokens": [256]}',
        '[mmc shapes] {"tokens": {"256": -1}}',
        '[mmc shapes] {"tokens": {"256": 0}}',
        '[mmc shapes] {"tokens": {"256": 1.5}}',
        '[mmc shapes] {"tokens": {"256": true}}',
        '[mmc shapes] {"tokens": {"256": NaN}}',
        '[mmc shapes] {"tokens": {"0": 1}}',
        '[mmc shapes] {"tokens": {"-256": 1}}',
        '[mmc shapes] {"tokens": {"wide": 1}}',
        '[mmc shapes] {"tokens": {"' + "9" * 5000 + '": 1}}',
        '[mmc shapes] {"tokens": {"256": ' + "9" * 5000 + "}}",
        '[mmc shapes] {"tokens": {}, "up_to": {"100": 1}}',
        '[mmc shapes] {"tokens": {}, "up_to": 1}',
        "[mmc shapes] " + '{"tokens":' * 100_000,
        '[mmc shapes] {\\"tokens\\": {\\"256\\": 1',
    ],
)
def test_a_damaged_line_is_left_out(text: str) -> None:
    found = read([said({256: 3}), text, "\x00\udcff"])
    assert found.histogram.tokens == {256: 3}
    assert found.unreadable == 1


# ---------------------------------------------------------------- proposals


@pytest.mark.parametrize(
    "tokens, ranges",
    [
        ({}, []),
        ({64: 1}, [[64, 64]]),
        ({64: 10, 80: 10, 96: 10}, [[64, 96]]),
        ({64: 10, 80: 10, 4096: 10, 5000: 10}, [[64, 80], [4096, 5000]]),
        # One call of a hundred, the largest: no range of its own.
        ({64: 50, 80: 49, 16384: 1}, [[64, 16384]]),
        ({1: 9, 9: 9, 99: 9, 999: 9}, [[1, 1], [9, 9], [99, 99], [999, 999]]),
        # Five clusters: the two that are nearest to each other share.
        (
            {1: 9, 9: 9, 99: 9, 300: 9, 3000: 9},
            [[1] * 2, [9] * 2, [99, 300], [3000] * 2],
        ),
    ],
)
def test_ranges(tokens: dict[int, int], ranges: list[list[int]]) -> None:
    assert histogram(tokens).compile_ranges() == ranges


def test_wide_without_gaps_is_parted_at_the_median() -> None:
    ranges = histogram({size: 1 for size in range(100, 6401, 4)}).compile_ranges()
    assert ranges == [[100, 3251], [3252, 6400]]


def test_ranges_hold_what_rounded_sizes_stand_for() -> None:
    ranges = histogram({100: 50}, up_to={8192: 50}).compile_ranges()
    assert ranges == [[100, 100], [4097, 8192]]


@pytest.mark.parametrize("seed", range(50))
def test_ranges_hold_every_size_and_do_not_meet(seed: int) -> None:
    draw = random.Random(seed)
    tokens: Counter[int] = Counter()
    for _ in range(draw.randint(1, 300)):
        tokens[int(2 ** draw.uniform(0, draw.choice([2, 8, 17])))] += draw.randint(1, 9)
    ranges = histogram(tokens).compile_ranges()
    assert 1 <= len(ranges) <= MAX_RANGES
    for size in tokens:
        assert sum(first <= size <= last for first, last in ranges) == 1
    ends = [end for pair in ranges for end in pair]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (min(tokens), max(tokens))


@pytest.mark.parametrize(
    "tokens, up_to, sizes",
    [
        ({}, {}, []),
        ({256: 90, 64: 10}, {}, [64, 256]),
        ({256: 901, 64: 99}, {}, [256]),
        ({size: 1 for size in range(1, 12)}, {}, []),
        ({size: 10 for size in range(1, 11)}, {}, [1, 2, 3, 4, 5, 6, 7, 8]),
        # A power of two that other sizes are rounded to is not a size.
        ({256: 50}, {1024: 50}, [256]),
    ],
)
def test_sizes(tokens: dict[int, int], up_to: dict[int, int], sizes: list[int]) -> None:
    assert histogram(tokens, up_to).compile_sizes() == sizes


# ---------------------------------------------------------------- bars


@pytest.mark.parametrize(
    "sizes", [[7], range(1, 17), range(100, 200), range(1, 3000, 7), [1, 2**53 - 1] * 9]
)
def test_every_call_is_in_one_bar(sizes: Any) -> None:
    items = sorted(Counter(sizes).items())
    found = bars(items)
    assert len(found) <= 54
    assert sum(calls for *_, calls in found) == len(sizes)
    for size, calls in items:
        assert sum(first <= size <= last for first, last, _ in found) == 1
    assert all(a[1] < b[0] for a, b in zip(found, found[1:]))


# ---------------------------------------------------------------- the command

TOKENS = {256: 70, 260: 25, 4096: 105}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "server.log"
    path.write_bytes(b"\xff\x00 starting\n" + said(TOKENS).encode())
    return path


def test_the_proposal_is_ready_to_use(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(log)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    (text,) = re.findall(r"^--additional-config '(.*)'$", printed.out, re.MULTILINE)
    assert json.loads(text) == {
        "vllm_mmc": {
            "compile_ranges": [[256, 260], [4096, 4096]],
            "compile_sizes": [256, 260, 4096],
        }
    }
    assert printed.out.splitlines()[:6] == [
        "200 encoder calls of 1 processes",
        "",
        "tokens   share",
        "   256  35.0%  ###########################",
        "   260  12.5%  ##########",
        "  4096  52.5%  ########################################",
    ]


def test_several_logs_and_the_counts_as_json(log: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.log", tmp_path / "out.json"
    other.write_text(said({256: 1}, "b"))
    assert main(["profile", str(log), str(other), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["processes"] == 2
    assert found["total"] == 201
    assert found["tokens"] == {"256": 71, "260": 25, "4096": 105}
    assert found["proposal"]["vllm_mmc"]["compile_ranges"] == [[256, 260], [4096] * 2]


@pytest.mark.parametrize("suffix, start", [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_plot(log: Path, tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"plot.{suffix}"
    assert main(["profile", str(log), "--plot", str(out)]) == 0
    assert out.read_bytes().startswith(start)


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["profile", *argv]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("vllm-mmc profile: ")
    return error


def test_a_log_without_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.log"
    empty.write_text("INFO nothing of ours\n")
    assert "VLLM_MMC_LOG_SHAPES_INTERVAL" in fails(capsys, str(empty))


def test_files_that_cannot_be_used(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No such file" in fails(capsys, str(tmp_path / "none.log"))
    assert "directory" in fails(capsys, str(tmp_path))
    assert "directory" in fails(capsys, str(log), "--json", str(tmp_path))
    assert ".svg or .png" in fails(capsys, str(log), "--plot", "plot.docx")


def test_plot_without_matplotlib(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "needs matplotlib" in fails(capsys, str(log), "--plot", "plot.svg")


def test_damaged_lines_are_told(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log.open("a") as file:
        file.write("[mmc shapes] {\n")
    assert main(["profile", str(log)]) == 0
    assert "1 damaged lines left out" in capsys.readouterr().err
