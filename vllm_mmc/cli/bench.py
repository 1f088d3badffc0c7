# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`vllm-mmc bench`: does compiling the encoder pay, for this model on this machine?

Starts `vllm serve` with `compile_mm_encoder` off and on, in turns. Each server is a
process with a compile cache of its own, and `vllm bench serve` sends the requests.
"""

import argparse
import contextlib
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vllm_mmc.cli.engine import UsageError, add_engine_arguments
from vllm_mmc.demo.engine import VLLM, serving

DEADLINE_S = 3600
MODES = {
    "off": {"compile_mm_encoder": False},
    "on": {"compile_mm_encoder": True},
    "graphs": {"compile_mm_encoder": True, "cudagraph_mm_encoder": True},
}
PICTURES = ((640, 480), (336, 336), (1024, 768), (224, 448))
"""Widths and heights of the shipped picture, in pixels."""
CLIPS = (3.0, 10.7, 1.3, 25.0)
"""Lengths of the shipped recording, in seconds."""
SUFFIXES = {
    "picture": (".jpg", ".jpeg", ".png", ".webp"),
    "speech": (".wav", ".flac", ".ogg", ".mp3"),
}
ALONE = 8
"""Requests that are sent one at a time, at most."""
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
"""Row of the table -> what `vllm bench serve` calls it."""
SECONDS = {
    "compile": ("dynamo_seconds", "inductor_seconds"),
    "load": ("load_seconds",),
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
        choices=("picture", "speech", "transcription"),
        default="picture",
        help="what to ask about; transcription: speech, for models that only "
        "transcribe (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="pictures or recordings of yours")
    parser.add_argument("--dataset-name", help="as for `vllm bench serve`")
    parser.add_argument("--dataset-path", help="as for `vllm bench serve`")
    parser.add_argument(
        "--bench-args",
        type=shlex.split,
        default=[],
        metavar="'...'",
        help="more options for `vllm bench serve`: --bench-args='--hf-split test'",
    )
    parser.add_argument(
        "--request-rate",
        action="append",
        dest="request_rates",
        metavar="RATE",
        help="requests per second, once or more; inf: all at once (default: inf)",
    )
    parser.add_argument(
        "--num-prompts", type=int, default=32, help="at each rate (default: 32)"
    )
    parser.add_argument(
        "--output-len", type=int, default=32, help="tokens, at most (default: 32)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="starts of each server; the first has an empty cache (default: 2)",
    )
    parser.add_argument(
        "--encoder-graphs",
        action="store_true",
        help="a third server, with cudagraph_mm_encoder as well",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was found")
    parser.add_argument("--plot", type=Path, metavar="OUT", help=".svg or .png")
    parser.add_argument(
        "--from",
        type=Path,
        dest="found",
        metavar="JSON",
        help="start nothing: the table and the plot of a file that --json has written",
    )
    add_engine_arguments(parser, nargs="?")
    parser.set_defaults(run=run)


@dataclass
class Round:
    """One start of a server.

    Attributes:
        mode: One of `MODES`.
        start_seconds: From nothing to a healthy server.
        loads: Request rate -> what `vllm bench serve` found.
        alone: What `vllm bench serve` found, one request at a time.
        encoder_ms: Milliseconds of each encoder call of those requests.
        counters: Of our encoders at the end, as on `/metrics`, without their prefix.
    """

    mode: str
    start_seconds: float
    loads: dict[str, dict[str, Any]] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)
    encoder_ms: list[float] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)


class TimedEncoder:
    """What `--worker-extension-cls` adds to vLLM's worker.

    vLLM can time its encoder, but no option of `vllm serve` switches that on.
    """

    model_runner: Any

    def time_encoder(self) -> None:
        """From now on, synchronize the device around each encoder call and time it."""
        runner = self.model_runner
        if hasattr(runner, "model_state"):  # vLLM's second model runner
            runner.model_state.encoder_runner.enable_timing = True
        else:
            runner.observability_config.enable_mm_processor_stats = True


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

    modes = modes_of(found)
    ratios = [f"{mode} ÷ off" for mode in modes[1:]]
    print_table(["", *modes, *ratios], rows(found))
    loads = [x for r in found["rounds"] for x in (*r["loads"].values(), r["alone"])]
    return int(any(load["failed"] for load in loads))


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Start the servers in turns and drive them."""
    modes = [mode for mode in MODES if mode != "graphs" or args.encoder_graphs]
    with tempfile.TemporaryDirectory(prefix="vllm-mmc-bench-") as name:
        directory = Path(name)
        load = load_arguments(args, directory)
        rounds = []
        for number in range(args.rounds):
            for mode in modes:
                say(f"round {number + 1} of {args.rounds}, compile {mode}: starting")
                rounds.append(asdict(one_round(args, mode, load, directory)))
    arguments = {"engine_args": args.engine_args, "bench_args": load}
    return {"model": args.model, **arguments, "rounds": rounds}


def one_round(
    args: argparse.Namespace, mode: str, load: Sequence[str], directory: Path
) -> Round:
    from vllm_mmc.cli.demo import link_model_notes

    cache = directory / f"cache-{mode}"
    if not cache.exists():
        link_model_notes(cache)
    env = {
        "VLLM_CACHE_ROOT": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "VLLM_SERVER_DEV_MODE": "1",  # to empty caches and to call the worker
    }
    extension = ["--worker-extension-cls", f"{__name__}.{TimedEncoder.__name__}"]
    engine_args = with_switches(args.engine_args, MODES[mode])
    with served([args.model, *extension, *engine_args], directory, env) as server:
        url, seconds = server
        say(f"  healthy after {seconds:.0f} s")
        found = Round(mode, seconds)
        for rate in args.request_rates or ["inf"]:
            how = ["--num-prompts", str(args.num_prompts), "--request-rate", rate]
            found.loads[rate] = driven(url, f"rate {rate}", [*load, *how], directory)
        timed = called(url, "time_encoder") is not None
        how = ["--num-prompts", str(min(ALONE, args.num_prompts))]
        how += ["--max-concurrency", "1"]
        found.alone = driven(url, "one at a time", [*load, *how], directory)
        if timed:
            stats = called(url, "get_encoder_timing_stats") or []
            found.encoder_ms = [
                1000 * request["encoder_forward_secs"] / request["num_encoder_calls"]
                for worker in stats
                for request in worker.values()
            ]
        found.counters = counters(url)
    return found


def driven(
    url: str, title: str, load: Sequence[str], directory: Path
) -> dict[str, Any]:
    """What `vllm bench serve` finds, of a server that has seen none of the requests."""
    for cache in ("prefix", "mm", "encoder"):
        post(f"{url}/reset_{cache}_cache")
    say(f"  {title} ...")
    result = directory / "result.json"
    command = [*VLLM, "bench", "serve", "--base-url", url, *load]
    command += ["--save-result", "--save-detailed", "--result-dir", str(directory)]
    command += ["--result-filename", result.name, "--disable-tqdm"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode or not result.exists():
        raise UsageError(f"`vllm bench serve` failed:\n{done.stdout[-3000:]}")
    seen = json.loads(result.read_text())
    result.unlink()
    errors = [e.strip().splitlines()[-1] for e in seen.get("errors", ()) if e.strip()]
    if not seen["completed"]:
        raise UsageError(f"no request was answered (--media?): {errors[:1]}")
    say(f"  {title}: {seen['completed']} answered, {seen['failed']} failed")
    for error in sorted(set(errors))[:3]:
        say(f"    {error}")
    keep = ("completed", "failed", "generated_texts", *MEASURES.values())
    return {name: seen.get(name) for name in keep}


def load_arguments(args: argparse.Namespace, directory: Path) -> list[str]:
    """What tells `vllm bench serve` what to ask."""
    found = ["--model", args.model, "--output-len", str(args.output_len)]
    if args.media == "transcription":  # at temperature 0 by itself
        found += ["--backend=openai-audio", "--endpoint=/v1/audio/transcriptions"]
    else:
        found += ["--backend=openai-chat", "--endpoint=/v1/chat/completions"]
        found.append("--temperature=0")
    if "--trust-remote-code" in args.engine_args:
        found.append("--trust-remote-code")
    if args.dataset_name or args.dataset_path:
        found += ["--dataset-name", args.dataset_name or "hf"]
        if args.dataset_path:
            found += ["--dataset-path", args.dataset_path]
        return found + args.bench_args

    kind = "picture" if args.media == "picture" else "speech"
    if args.folder:
        files = folder_files(args.folder, kind)
        if len(files) < args.num_prompts:
            say(
                f"{len(files)} files for {args.num_prompts} requests: files are asked "
                "about again, and vLLM keeps what it has encoded"
            )
    else:
        files = shipped(kind, directory, args.num_prompts)
    questions = directory / "questions.jsonl"
    if kind == "picture":
        # A server reads no files of its clients.
        found += ["--dataset-name=custom_image", "--custom-ensure-client-side-data"]
        asked = [
            {"prompt": "What is in this picture?", "image_files": [str(file)]}
            for file in files
        ]
    else:
        found.append("--dataset-name=custom_audio")
        if args.media == "speech":
            found.append("--enable-multimodal-chat")
        asked = [{"prompt": "What is said?", "audio": str(file)} for file in files]
    questions.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return [*found, "--dataset-path", str(questions), *args.bench_args]


def folder_files(folder: Path, kind: str) -> list[Path]:
    suffixes = SUFFIXES[kind]
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    found = [file for file in folder.iterdir() if file.suffix.lower() in suffixes]
    if not found:
        raise UsageError(f"{folder} holds no file for --media: {', '.join(suffixes)}")
    return sorted(file.absolute() for file in found)


def shipped(kind: str, directory: Path, count: int) -> list[Path]:
    """The shipped picture at several sizes, or the recording at several lengths.

    No two are equal: vLLM does not encode again what it has encoded.
    """
    import numpy as np

    from vllm_mmc.demo import media

    found = []
    for i in range(count):
        if kind == "picture":
            found.append(directory / f"{i}.png")
            picture = media.photograph_at(*PICTURES[i % len(PICTURES)])
            picture.putpixel((i % picture.width, i // picture.width), (0, 0, 0))
            picture.save(found[-1])
        else:
            found.append(directory / f"{i}.wav")
            samples = media.speech(CLIPS[i % len(CLIPS)])
            found[-1].write_bytes(media.wav(np.roll(samples, 160 * i)))
    return found


def with_switches(arguments: Sequence[str], switches: dict[str, bool]) -> list[str]:
    """The arguments with `switches` in the compilation config.

    Of several compilation configs, vLLM takes the last alone.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("--compilation-config", "--compilation_config", "-cc")
    parser.add_argument(*names, type=json.loads, default={}, dest="config")
    for argument in arguments:
        if argument.startswith(tuple(f"{name}." for name in names)):
            raise UsageError(f"give {argument} in --compilation-config '{{...}}'")
    known, rest = parser.parse_known_args(arguments)
    return [*rest, "--compilation-config", json.dumps(known.config | switches)]


@contextlib.contextmanager
def served(
    arguments: Sequence[str], directory: Path, env: dict[str, str]
) -> Iterator[tuple[str, float]]:
    """Runs `vllm serve` on a free port; yields its URL and the seconds it took."""
    with contextlib.ExitStack() as stack:
        server = serving(arguments, directory / "server.log", env, DEADLINE_S)
        try:
            url, seconds, _ = stack.enter_context(server)
        except RuntimeError as error:
            raise UsageError(str(error)) from None
        yield url, seconds


def post(url: str, body: Any = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def called(url: str, method: str) -> list[Any] | None:
    """What each worker returns of this method; None where a worker has no such method.

    A `--worker-extension-cls` of the user's takes the place of ours.
    """
    try:
        content = post(f"{url}/collective_rpc", {"method": method})
    except urllib.error.HTTPError:
        return None
    results: list[Any] = json.loads(content)["results"]
    return results


def counters(url: str) -> dict[str, float]:
    """What the server's `/metrics` says of our encoders."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r"^vllm_mmc:encoder_(\w+)_total(?:\{.*\})? (\S+)", text, re.M)
    return {name: float(value) for name, value in found}


def modes_of(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(r["mode"] for r in found["rounds"]))


def rows(found: dict[str, Any]) -> list[list[str]]:
    """One row per measure: its name, each mode's median over the rounds, ratios."""
    modes, truth = modes_of(found), found["rounds"][0]["alone"]["generated_texts"]
    rounds = {m: [r for r in found["rounds"] if r["mode"] == m] for m in modes}
    table: list[list[str]] = []

    def add(
        name: str,
        value: Callable[[dict[str, Any]], float | None],
        part: slice = slice(None),
    ) -> None:
        values = [median([value(r) for r in rounds[mode][part]]) for mode in modes]
        ratios = [x / values[0] if x and values[0] else None for x in values[1:]]
        table.append([name, *map(number, values), *map(number, ratios)])

    for cache, part in (("empty", slice(1)), ("warm", slice(1, None))):
        add(f"start, {cache} cache, s", lambda r: r["start_seconds"], part)
        for name, parts in SECONDS.items():
            add(
                f"encoder {name} seconds, {cache} cache",
                partial(total, parts),
                part,
            )
    add("encoder, median call, ms", lambda r: median(r["encoder_ms"]))
    equal = [
        [sum(map(str.__eq__, r["alone"]["generated_texts"], truth)) for r in of_mode]
        for of_mode in rounds.values()
    ]
    cells = [f"{min(counts)} of {len(truth)}" for counts in equal]
    table.append(["answers as the first off", *cells, *[""] * (len(modes) - 1)])
    for rate in found["rounds"][0]["loads"]:
        for title, key in MEASURES.items():
            add(f"rate {rate}: {title}", partial(measure, rate, key))
    return table


def total(names: Sequence[str], found: dict[str, Any]) -> float | None:
    known = [found["counters"][name] for name in names if name in found["counters"]]
    return sum(known) if known else None


def measure(rate: str, key: str, found: dict[str, Any]) -> float | None:
    value: float | None = found["loads"][rate][key]
    return value


def median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(found: dict[str, Any], out: Path) -> None:
    """Draws the times (medians over the rounds) at each request rate."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "--plot needs matplotlib: it comes with vllm-mmc[bench]"
        ) from error

    modes, rates = modes_of(found), list(found["rounds"][0]["loads"])
    shown = [title for title in MEASURES if title.endswith(", ms")]
    figure = Figure(figsize=(12, 6), layout="constrained")
    places: Any = figure.subplots(2, len(shown) // 2, squeeze=False).T.flat
    for axes, title in zip(places, shown, strict=True):
        for i, mode in enumerate(modes):
            heights = [
                median(
                    [
                        r["loads"][rate][MEASURES[title]]
                        for r in found["rounds"]
                        if r["mode"] == mode
                    ]
                )
                for rate in rates
            ]
            width = 0.8 / len(modes)
            lefts = [x + width * (i - (len(modes) - 1) / 2) for x in range(len(rates))]
            tops = [height or 0.0 for height in heights]
            axes.bar(lefts, tops, width, label=f"compile {mode}")
        axes.set_xticks(range(len(rates)), rates)
        axes.set_xlabel("requests per second")
        axes.set_title(title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    figure.savefig(out)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
