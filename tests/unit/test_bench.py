# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc bench` with a stand-in for vLLM: what it starts, asks and prints."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_mmc.cli import bench
from vllm_mmc.cli.engine import UsageError
from vllm_mmc.cli.main import main

STAND_IN = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

args = sys.argv[1:]
with Path(os.environ["SAID"]).open("a") as said:
    cache = os.environ.get("VLLM_CACHE_ROOT")
    said.write(json.dumps({"args": args, "cache": cache}) + "\\n")

def value(option):
    return args[args.index(option) + 1]

if args[0] == "serve":
    if "--broken" in args:
        sys.exit("no such model")
    compiled = args[-5] == "-cc.compile_mm_encoder=true"
    graphs = f"vllm_mmc:encoder_inductor_seconds_total {7.5 * compiled}\\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(graphs.encode() if self.path == "/metrics" else b"")

    HTTPServer((value("--host"), int(value("--port"))), Handler).serve_forever()
elif "--fail" in args:
    sys.exit("no such file")
else:
    lines = Path(value("--dataset-path")).read_text().splitlines()
    result = {"completed": len(lines), "failed": 0, "median_ttft_ms": 20.0}
    result["generated_texts"] = [json.loads(line)["prompt"] for line in lines]
    name = value("--result-filename")
    Path(value("--result-dir"), name).write_text(json.dumps(result))
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(bench, "VLLM", (sys.executable, str(script)))
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    return tmp_path / "said"


def calls(said: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.read_text().splitlines()]


def test_servers_take_turns_and_keep_their_caches(
    said: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    options = ["--request-rate=inf", "--request-rate=2", f"--json={out}"]
    options.append("--num-prompts=4")
    assert main(["bench", *options, "tiny", "--max-model-len", "64"]) == 0
    output = capsys.readouterr()
    seen = calls(said)
    starts = [call for call in seen if call["args"][0] == "serve"]
    assert [call["args"][:3] for call in starts] == [
        ["serve", "tiny", "--max-model-len"]
    ] * 4
    switches = [call["args"][4].rpartition("=")[2] for call in starts]
    assert switches == ["false", "true"] * 2
    caches = [call["cache"] for call in starts]
    assert caches[0] == caches[2] != caches[1] == caches[3]
    rates = [c["args"][c["args"].index("--request-rate") + 1] for c in seen[1:3]]
    assert len(seen) == 4 * 3 and rates == ["inf", "2"]

    found = json.loads(out.read_text())
    assert [r["mode"] for r in found["rounds"]] == ["off", "on", "off", "on"]
    table = {row[0]: row[1:] for row in bench.rows(found)}
    assert table["rate 2: TTFT, median, ms"] == ["20.00", "20.00", "1.00"]
    assert table["rate inf: answers equal"] == ["", "4 of 4", ""]
    assert table["encoder inductor seconds, empty cache"][:2] == ["0.00", "7.50"]
    assert table["start, warm cache, s"][0] != ""
    assert "rate inf: requests per second" in output.out
    assert "round 2 of 2, compile on: starting" in output.err


def test_a_table_and_a_plot_from_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load: dict[str, Any] = dict.fromkeys(bench.MEASURES.values(), 10.0)
    load |= {"failed": 1, "generated_texts": ["a", "b"]}
    other = load | {"median_ttft_ms": 5.0, "generated_texts": ["a", "c"]}
    rounds = [
        {"mode": mode, "start_seconds": 1.0, "counters": {}, "loads": {"inf": found}}
        for mode, found in (("off", load), ("on", other))
    ]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"model": "tiny", "rounds": rounds}))
    pytest.importorskip("matplotlib")
    plotted = tmp_path / "plot.svg"
    # A request has failed.
    assert main(["bench", "--from", str(path), "--plot", str(plotted)]) == 1
    assert "1 of 2" in capsys.readouterr().out
    assert "<svg" in plotted.read_text()
    table = {row[0]: row[1:] for row in bench.rows(json.loads(path.read_text()))}
    assert table["rate inf: TTFT, median, ms"] == ["10.00", "5.00", "0.50"]
    assert table["start, warm cache, s"] == ["", "", ""]


def test_the_users_pictures_or_recordings(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert [f.name for f in bench.folder_files(tmp_path)] == ["a.jpg", "b.PNG"]
    (tmp_path / "c.wav").touch()
    with pytest.raises(UsageError, match="not both"):
        bench.folder_files(tmp_path)


def test_speech_is_asked_as_a_chat_or_transcribed(tmp_path: Path) -> None:
    def arguments(*options: str) -> list[str]:
        args = parsed("--media=speech", "--num-prompts=6", *options, "tiny")
        return bench.load_arguments(args, tmp_path)

    assert "--enable-multimodal-chat" in arguments()
    transcribed = arguments("--backend", "openai-audio", "--endpoint", "/v1/audio")
    assert "--enable-multimodal-chat" not in transcribed
    questions = (tmp_path / "questions.jsonl").read_text().splitlines()
    assert len(questions) == 6
    clips = [Path(json.loads(q)["audio"]).read_bytes() for q in questions]
    assert len(set(clips)) == 6


def test_no_picture_is_asked_about_twice(tmp_path: Path) -> None:
    """vLLM encodes a picture once."""
    found = bench.shipped("picture", tmp_path, 9)
    pictures = [Image.open(path) for path in found]
    assert len({picture.tobytes() for picture in pictures}) == 9
    assert [picture.size for picture in pictures[:4]] == list(bench.PICTURES)


def test_a_dataset_of_vllms(tmp_path: Path) -> None:
    options = ["--dataset-name", "hf", "--dataset-path", "lmarena-ai/VisionArena-Chat"]
    found = bench.load_arguments(parsed(*options, "tiny"), tmp_path)
    assert found[-6:] == [*options, "--hf-output-len", "32"]
    with pytest.raises(UsageError, match="needs --dataset-name"):
        bench.load_arguments(parsed(*options[2:], "tiny"), tmp_path)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "name a model"),
        (["tiny", "--broken"], "vllm serve did not start:\nno such model"),
    ],
)
def test_wrong_use_is_status_2(
    said: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == 2
    assert says in capsys.readouterr().err


def parsed(*argv: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *argv])
