# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc bench`: does compiling the encoder pay, for this model on this machine?

Starts `vllm serve` with `compile_mm_encoder` off and on, in turns. Each server is a
process with a compile cache of its own, and `vllm bench serve` sends the requests.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_mmc.cli.engine import UsageError

VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
DEADLINE_S = 3600
MODES = {"off": "false", "on": "true"}
PICTURES = ((640, 480), (336, 336), (1024, 768), (224, 448))
CLIPS = (3.0, 10.7, 1.3, 25.0)
KINDS = {
    ".jpg": "picture",
    ".jpeg": "picture",
    ".png": "picture",
    ".webp": "picture",
    ".wav": "speech",
    ".flac": "speech",
    ".ogg": "speech",
    ".mp3": "speech",
}
MEASURES = {
    "requests per second": "request_throughput",
    "output tokens per second": "output_throughput",
    "TTFT, median, ms": "median_ttft_ms",
    "TTFT, p99, ms": "p99_ttft_ms",
    "TPOT, median, ms": "median_tpot_ms",
    "TPOT, p99, ms": "p99_tpot_ms",
    "ITL, median, ms": "median_itl_ms",
    "ITL, p99, ms": "p99_itl_ms",
}


def add_parser(subparsers: Any) -> None:
    """Adds `bench` to the commands of `vllm-mmc`."""
    parser = subparsers.add_parser(
        "bench",
        help="serve a model with the encoder compiled and not, and compare",
        description=(
            "Start `vllm serve` with compile_mm_encoder off and on, in turns, drive "
            "each with `vllm bench serve`, and print one table. Exit status 1 if a "
            "request failed. Options of this command go before MODEL."
        ),
    )
    parser.add_argument(
        "--media",
        choices=("picture", "speech"),
        default="picture",
        help="which of the shipped media to ask about (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="pictures or recordings of yours")
    parser.add_argument("--dataset-name", help="as for `vllm bench serve`")
    parser.add_argument("--dataset-path", help="as for `vllm bench serve`")
    parser.add_argument("--backend", help="as for `vllm bench serve`")
    parser.add_argument("--endpoint", help="as for `vllm bench serve`")
    parser.add_argument(
        "--request-rate",
        action="append",
        dest="request_rates",
        metavar="RATE",
        help="requests per second, once or more; inf: all at once (default: inf)",
    )
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="starts of each server; the first has an empty cache (default: 2)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was found")
    parser.add_argument("--plot", type=Path, metavar="OUT", help=".svg or .png")
    parser.add_argument("--from", type=Path, dest="found", help="a file of --json")
    parser.add_argument("model", nargs="?", help="as for `vllm serve`")
    parser.add_argument(
        "engine_args",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="engine arguments, as for `vllm serve`",
    )
    parser.set_defaults(run=run)


@dataclass
class Round:
    """One start of a server.

    Attributes:
        mode: "off" or "on".
        start_seconds: From nothing to a healthy server.
        counters: Of our encoders, as on `/metrics`, without their prefix.
        loads: Request rate -> what `vllm bench serve` found.
    """

    mode: str
    start_seconds: float
    counters: dict[str, float]
    loads: dict[str, dict[str, Any]]


def run(args: argparse.Namespace) -> int:
    if args.found is not None:
        found = json.loads(args.found.read_text())
    elif args.model is None:
        raise UsageError("name a model, or a file of --json with --from")
    else:
        found = measured(args)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if args.plot is not None:
        plot(found, args.plot)
    from vllm_mmc.cli.demo import print_table

    print_table(["", "off", "on", "on ÷ off"], rows(found))
    failed = [load["failed"] for r in found["rounds"] for load in r["loads"].values()]
    return int(any(failed))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Start the servers in turns and drive them."""
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-bench-") as name:
        directory = Path(name)
        load = load_arguments(args, directory)
        rounds = []
        for number in range(args.rounds):
            for mode in MODES:
                say(f"round {number + 1} of {args.rounds}, compile {mode}: starting")
                rounds.append(one_round(args, mode, load, directory))
    return {"model": args.model, "rounds": [asdict(r) for r in rounds]}


def one_round(
    args: argparse.Namespace, mode: str, load: Sequence[str], directory: Path
) -> Round:
    cache = directory / f"cache-{mode}"
    env = {
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    switch = f"-cc.compile_mm_encoder={MODES[mode]}"
    with served([args.model, *args.engine_args, switch], directory, env) as server:
        url, seconds = server
        say(f"  healthy after {seconds:.0f} s")
        found = Round(mode, seconds, counters(url), {})
        for rate in args.request_rates or ["inf"]:
            result = directory / "result.json"
            command = [*VLLM, "bench", "serve", "--base-url", url, *load]
            command += ["--model", args.model, "--num-prompts", str(args.num_prompts)]
            command += ["--request-rate", rate, "--temperature", "0", "--disable-tqdm"]
            command += ["--save-result", "--save-detailed", "--result-dir"]
            command += [str(directory), "--result-filename", result.name]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode or not result.exists():
                raise UsageError(f"vllm bench serve failed:\n{done.stdout[-2000:]}")
            seen = json.loads(result.read_text())
            result.unlink()
            keep = ("completed", "failed", "generated_texts", *MEASURES.values())
            found.loads[rate] = {name: seen.get(name) for name in keep}
            say(f"  rate {rate}: {seen['completed']} answered, {seen['failed']} failed")
            for error in sorted(set(filter(None, seen.get("errors", ()))))[:3]:
                say(f"    {error.strip().splitlines()[-1]}")
    return found


def load_arguments(args: argparse.Namespace, directory: Path) -> list[str]:
    """What tells `vllm bench serve` what to ask."""
    name, path, media = args.dataset_name, args.dataset_path, args.media
    if path is None:
        files = (
            folder_files(args.folder)
            if args.folder
            else shipped(media, directory, args.num_prompts)
        )
        (media,) = {KINDS[file.suffix.lower()] for file in files}
        name = "custom_image" if media == "picture" else "custom_audio"
        path = str(directory / "questions.jsonl")
        Path(path).write_text("".join(question(f, media) + "\n" for f in files))
    elif name is None:
        raise UsageError("--dataset-path needs --dataset-name")
    backend = args.backend or "openai-chat"
    endpoint = args.endpoint or "/v1/chat/completions"
    found = ["--backend", backend, "--endpoint", endpoint]
    found += ["--dataset-name", name, "--dataset-path", path]
    if name == "custom_audio" and backend == "openai-chat":
        found.append("--enable-multimodal-chat")
    if name == "custom_image":  # a server reads no files of its clients
        found.append("--custom-ensure-client-side-data")
    length = {"custom_image": "custom", "custom_audio": "custom"}.get(name, "hf")
    return [*found, f"--{length}-output-len", str(args.output_len)]


def question(file: Path, media: str) -> str:
    if media == "picture":
        asked = {"prompt": "What is in this picture?", "image_files": [str(file)]}
    else:
        asked = {"prompt": "What is said?", "audio": str(file)}
    return json.dumps(asked)


def folder_files(folder: Path) -> list[Path]:
    found = [f for f in sorted(folder.glob("*")) if f.suffix.lower() in KINDS]
    kinds = {KINDS[f.suffix.lower()] for f in found}
    if len(kinds) != 1:
        raise UsageError(
            f"{folder} must hold pictures or recordings ({', '.join(KINDS)}), not both"
        )
    return [f.absolute() for f in found]


def shipped(media: str, directory: Path, count: int) -> list[Path]:
    """The shipped picture at several sizes, or the speech at several lengths.

    No two are equal: vLLM does not encode again what it has encoded.
    """
    import numpy as np

    from vllm_mmc.demo import media as files

    found = []
    for i in range(count):
        if media == "picture":
            found.append(directory / f"{i}.png")
            picture = files.photograph_at(*PICTURES[i % len(PICTURES)])
            picture.putpixel((i % picture.width, 0), (i // picture.width % 256, 0, 0))
            picture.save(found[-1])
        else:
            found.append(directory / f"{i}.wav")
            samples = files.speech(CLIPS[i % len(CLIPS)])
            found[-1].write_bytes(files.wav(np.roll(samples, 160 * i)))
    return found


@contextlib.contextmanager
def served(
    arguments: Sequence[str], directory: Path, env: dict[str, str]
) -> Iterator[tuple[str, float]]:
    """Runs `vllm serve` on a free port; yields its URL and the seconds it took."""
    from vllm_mmc.demo.engine import end_process_group

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", directory / "server.log"
    address = ["--host", "127.0.0.1", "--port", str(port)]
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*VLLM, "serve", *arguments, *address],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | env,
            start_new_session=True,
        )
    try:
        while not healthy(url):
            if process.poll() is not None or time.monotonic() - start > DEADLINE_S:
                tail = log.read_text(errors="replace")[-3000:]
                raise UsageError(f"vllm serve did not start:\n{tail}")
            time.sleep(0.2)
        yield url, time.monotonic() - start
    finally:
        end_process_group(process)


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def counters(url: str) -> dict[str, float]:
    """What the server's `/metrics` says of our encoders."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r"^vllm_mmc:encoder_(\w+)_total(?:\{.*\})? (\S+)", text, re.M)
    return {name: float(value) for name, value in found}


def rows(found: dict[str, Any]) -> list[list[str]]:
    """Medians over the rounds; a start has one of each kind."""
    modes = {m: [r for r in found["rounds"] if r["mode"] == m] for m in MODES}

    def row(name: str, values: dict[str, list[Any]]) -> list[str]:
        off, on = (median(values[mode]) for mode in MODES)
        ratio = "" if off is None or on is None or not off else f"{on / off:.2f}"
        return [name, *("" if x is None else f"{x:.2f}" for x in (off, on)), ratio]

    table = [
        row(
            "start, empty cache, s",
            {m: [r["start_seconds"] for r in modes[m][:1]] for m in MODES},
        ),
        row(
            "start, warm cache, s",
            {m: [r["start_seconds"] for r in modes[m][1:]] for m in MODES},
        ),
    ]
    for name in ("dynamo", "inductor", "load"):
        for title, part in (("empty", slice(0, 1)), ("warm", slice(1, None))):
            key = f"{name}_seconds"
            values = {
                m: [r["counters"].get(key) for r in modes[m][part]] for m in MODES
            }
            table.append(row(f"encoder {name} seconds, {title} cache", values))
    for rate in found["rounds"][0]["loads"]:
        for title, key in MEASURES.items():
            values = {m: [r["loads"][rate][key] for r in modes[m]] for m in MODES}
            table.append(row(f"rate {rate}: {title}", values))
        texts = [[r["loads"][rate]["generated_texts"] for r in modes[m]] for m in MODES]
        pairs = list(zip(texts[0][0] or [], texts[1][0] or [], strict=True))
        equal = f"{sum(a == b for a, b in pairs)} of {len(pairs)}"
        table.append([f"rate {rate}: answers equal", "", equal, ""])
    return table


def median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def plot(found: dict[str, Any], out: Path) -> None:
    """Draws TTFT and TPOT (medians over the rounds) for each request rate."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "--plot needs matplotlib: it comes with vllm-mmc[bench]"
        ) from error

    rates = list(found["rounds"][0]["loads"])
    shown = ("TTFT, median, ms", "TTFT, p99, ms", "TPOT, median, ms")
    figure = Figure(figsize=(4 * len(shown), 3), layout="constrained")
    for place, title in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        for i, mode in enumerate(MODES):
            heights = [
                statistics.median(
                    r["loads"][rate][MEASURES[title]] or 0.0
                    for r in found["rounds"]
                    if r["mode"] == mode
                )
                for rate in rates
            ]
            lefts = [x + 0.4 * (i - 0.5) for x in range(len(rates))]
            axes.bar(lefts, heights, 0.4, label=f"compile {mode}")
        axes.set_xticks(range(len(rates)), rates)
        axes.set_xlabel("requests per second")
        axes.set_title(title)
        axes.legend()
    figure.savefig(out)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
