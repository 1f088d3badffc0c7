# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc bench` with a stand-in for vLLM: what it starts, asks and prints."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vllm_mmc.cli import bench
from vllm_mmc.cli.engine import UsageError
from vllm_mmc.cli.main import main
from vllm_mmc.demo import engine

STAND_IN = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

args = sys.argv[1:]
with Path(os.environ["SAID"]).open("a") as said:
    cache = os.environ.get("VLLM_CACHE_ROOT")
    said.write(json.dumps({"args": args, "cache": cache}) + "\\n")

def value(option):  # the last, as argparse
    return args[len(args) - args[::-1].index(option)]

if args[0] == "serve":
    if "--broken" in args:
        sys.exit("no such model")
    compiled = json.loads(value("--compilation-config"))["compile_mm_encoder"]
    graphs = f"vllm_mmc:encoder_inductor_seconds_total {7.5 * compiled}\\n"
    extended = value("--worker-extension-cls") == "vllm_mmc.cli.bench.TimedEncoder"
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(graphs.encode() if self.path == "/metrics" else b"")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path if not body else json.loads(body)["method"])
            call = {"encoder_forward_secs": 0.04, "num_encoder_calls": 2}
            times = {"a": call} if asked[-1] == "get_encoder_timing_stats" else None
            self.answer(json.dumps({"results": [times], "asked": asked}).encode())

        def answer(self, content):
            known = extended or self.path != "/collective_rpc"
            self.send_response(200 if known else 500)
            self.end_headers()
            self.wfile.write(content)

    HTTPServer((value("--host"), int(value("--port"))), Handler).serve_forever()
elif "--fail" in args:
    sys.exit("no such file")
else:
    lines = Path(value("--dataset-path")).read_text().splitlines()
    lines = lines[:int(value("--num-prompts"))]
    done = 0 if "--refused" in args else len(lines)
    result = {"completed": done, "failed": len(lines) - done, "median_ttft_ms": 20.0}
    result["errors"] = [] if done else ["Traceback:\\nNot Found"]
    result["generated_texts"] = [json.loads(line)["prompt"] for line in lines]
    name = value("--result-filename")
    Path(value("--result-dir"), name).write_text(json.dumps(result))
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    for module in (bench, engine):
        monkeypatch.setattr(module, "VLLM", (sys.executable, str(script)))
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    return tmp_path / "said"


def calls(said: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.read_text().splitlines()]


def value(call: dict[str, Any], option: str) -> str:
    return str(call["args"][call["args"].index(option) + 1])


def test_servers_take_turns_and_keep_their_caches(
    said: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    options = ["--request-rate=inf", "--request-rate=2", f"--json={out}"]
    options += ["--num-prompts=9", "--encoder-graphs"]
    assert main(["bench", *options, "tiny", "--max-model-len", "64"]) == 0
    output = capsys.readouterr()
    starts = [call for call in calls(said) if call["args"][0] == "serve"]
    assert all(call["args"][1] == "tiny" for call in starts)
    assert all(value(call, "--max-model-len") == "64" for call in starts)
    switches = [json.loads(value(call, "--compilation-config")) for call in starts]
    assert switches == list(bench.MODES.values()) * 2
    caches = [call["cache"] for call in starts]
    assert caches[:3] == caches[3:]
    assert len(set(caches)) == 3
    loads = [call for call in calls(said) if call["args"][0] == "bench"]
    assert len(loads) == 6 * 3
    assert [value(load, "--request-rate") for load in loads[:2]] == ["inf", "2"]
    assert value(loads[2], "--max-concurrency") == "1"
    assert [value(load, "--num-prompts") for load in loads[:3]] == ["9", "9", "8"]

    found = json.loads(out.read_text())
    assert [r["mode"] for r in found["rounds"]] == ["off", "on", "graphs"] * 2
    table = {row[0]: row[1:] for row in bench.rows(found)}
    assert table["rate 2: TTFT, median, ms"] == ["20.00"] * 3 + ["1.00"] * 2
    assert table["answers as the first off"] == ["8 of 8"] * 3 + [""] * 2
    assert table["encoder compile seconds, empty cache"][:2] == ["0.00", "7.50"]
    assert table["encoder, median call, ms"][0] == "20.00"
    assert table["start, warm cache, s"][0] != ""
    assert "rate inf: requests per second" in output.out
    assert "round 2 of 2, compile graphs: starting" in output.err


def test_each_load_finds_empty_caches(said: Path, tmp_path: Path) -> None:
    """A server answers from what it keeps, and then its encoder does not run."""
    resets = [f"/reset_{cache}_cache" for cache in ("prefix", "mm", "encoder")]
    arguments = ["tiny", "--worker-extension-cls", "vllm_mmc.cli.bench.TimedEncoder"]
    config = ["--compilation-config", '{"compile_mm_encoder": true}']
    load = bench.load_arguments(parsed("--num-prompts=2", "tiny"), tmp_path)
    load += ["--num-prompts", "2"]
    with bench.served([*arguments, *config], tmp_path, {}) as (url, _):
        for title in ("rate 1", "rate 2"):
            bench.driven(url, title, load, tmp_path)
        bench.called(url, "time_encoder")
        asked = json.loads(bench.post(f"{url}/reset_mm_cache"))["asked"]
    assert asked == [*resets, *resets, "time_encoder", "/reset_mm_cache"]


def test_a_worker_extension_of_the_users_takes_the_place_of_ours(said: Path) -> None:
    options = ["--num-prompts=2", "--rounds=1", "--json", str(said.with_name("found"))]
    extension = ["--worker-extension-cls", "theirs.Extension"]
    assert main(["bench", *options, "tiny", *extension]) == 0
    found = json.loads(said.with_name("found").read_text())
    assert [r["encoder_ms"] for r in found["rounds"]] == [[], []]
    assert ["encoder, median call, ms", "", "", ""] in bench.rows(found)


def test_vllms_worker_times_its_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either model runner, by the names that vLLM reads."""
    from types import SimpleNamespace

    import torch
    from vllm.config import ObservabilityConfig
    from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

    worker = bench.TimedEncoder()
    config = ObservabilityConfig()
    worker.model_runner = SimpleNamespace(observability_config=config)
    worker.time_encoder()
    assert config.enable_mm_processor_stats

    runner = EncoderRunner(None, 1, 1, None, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    state = SimpleNamespace(encoder_runner=runner)
    worker.model_runner = SimpleNamespace(model_state=state)
    worker.time_encoder()
    with runner.timed_encoder_operation(["a"]):
        pass
    assert runner.get_encoder_timing_stats()["a"]["num_encoder_calls"] == 1


def test_a_table_and_a_plot_from_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load: dict[str, Any] = dict.fromkeys(bench.MEASURES.values(), 10.0)
    load |= {"failed": 1, "generated_texts": ["a", "b"]}
    other = load | {"median_ttft_ms": 5.0, "generated_texts": ["a", "c"]}
    rounds = [
        asdict(bench.Round(mode, 1.0, loads={"inf": found}, alone=found))
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
    assert table["encoder compile seconds, empty cache"] == ["", "", ""]


def test_the_users_pictures_or_recordings(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c.wav", "notes.txt"):
        (tmp_path / name).touch()
    found = bench.folder_files(tmp_path, "picture")
    assert [file.name for file in found] == ["a.jpg", "b.PNG"]
    found = bench.folder_files(tmp_path, "speech")
    assert [file.name for file in found] == ["c.wav"]
    (tmp_path / "c.wav").unlink()
    with pytest.raises(UsageError, match=r"no file for --media: .wav"):
        bench.folder_files(tmp_path, "speech")
    with pytest.raises(UsageError, match="not a folder"):
        bench.folder_files(tmp_path / "a.jpg", "picture")


def test_the_users_pictures_are_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").touch()
    args = parsed("--folder", str(folder), "--num-prompts=2", "tiny")
    found = bench.load_arguments(args, tmp_path)
    (question,) = (tmp_path / "questions.jsonl").read_text().splitlines()
    assert json.loads(question)["image_files"] == [str(folder / "a.jpg")]
    assert "--custom-ensure-client-side-data" in found
    assert "1 files for 2 requests" in capsys.readouterr().err


def test_speech_is_asked_as_a_chat_or_transcribed(tmp_path: Path) -> None:
    def arguments(media: str) -> list[str]:
        args = parsed(f"--media={media}", "--num-prompts=6", "tiny")
        return bench.load_arguments(args, tmp_path)

    assert {"--enable-multimodal-chat", "--backend=openai-chat"} < {
        *arguments("speech")
    }
    transcribed = arguments("transcription")
    assert "--enable-multimodal-chat" not in transcribed
    assert "--temperature=0" not in transcribed  # vLLM refuses it with this backend
    assert "--endpoint=/v1/audio/transcriptions" in transcribed
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
    more = ["--bench-args=--hf-split 'a b'", "tiny", "--trust-remote-code"]
    found = bench.load_arguments(parsed(*options, *more), tmp_path)
    assert found[-7:] == ["--trust-remote-code", *options, "--hf-split", "a b"]
    assert bench.load_arguments(parsed(*options[2:], *more), tmp_path) == found


@pytest.mark.parametrize(
    "argument",
    [["-cc", '{"mode": 3}'], ['--compilation-config={"mode": 3}'], []],
)
def test_the_users_compilation_config_stays(argument: list[str]) -> None:
    """vLLM takes the last of several, and nothing of the others."""
    arguments = ["--seed", "1", *argument, "--enforce-eager"]
    *rest, name, config = bench.with_switches(arguments, {"compile_mm_encoder": True})
    assert rest == ["--seed", "1", "--enforce-eager"]
    assert name == "--compilation-config"
    expected = {"compile_mm_encoder": True} | ({"mode": 3} if argument else {})
    assert json.loads(config) == expected


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "name a model"),
        (["tiny", "--broken"], "`vllm serve` exited with 1:\nno such model"),
        (["--bench-args=--fail", "tiny"], "`vllm bench serve` failed:\nno such file"),
        (["--bench-args=--refused", "tiny"], "no request was answered"),
        (["tiny", "-cc.mode=3"], "give -cc.mode=3 in --compilation-config '{...}'"),
    ],
)
def test_wrong_use_is_status_2(
    said: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--num-prompts=1", *argv]) == 2
    assert says in capsys.readouterr().err


def parsed(*argv: str) -> Any:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *argv])
