# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Counters of several processes in the text that /metrics answers with."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from vllm_mmc import metrics

# Publishes each line that it reads, and answers.
WRITER = """
import json, sys
from vllm_mmc import metrics
for line in sys.stdin:
    metrics.publish(json.loads(line))
    print("published", flush=True)
"""

# Nobody's child, as the processes of a cluster of Ray.
ORPHAN = "import os\nif os.fork():\n    os._exit(0)\n" + WRITER

# An API server whose engine gets no chance to end well.
SERVER = """
import os, signal, subprocess, sys
from vllm_mmc import metrics
metrics.expose()
code = '''
import time
from vllm_mmc import metrics
metrics.publish({"graphs": 1})
print(flush=True)
time.sleep(60)
'''
engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
engine.stdout.readline()
os.kill(engine.pid, signal.SIGKILL)
engine.wait()
print(len(list(metrics._files())), flush=True)
"""

FORKED = """
import multiprocessing, sys
from vllm_mmc import metrics
fork = multiprocessing.get_context("fork")
done = fork.Event()
def child():
    metrics.publish({"graphs": 20})
    print("published", flush=True)
    done.wait()
metrics.publish({"graphs": 10})
process = fork.Process(target=child)
process.start()
sys.stdin.readline()
done.set()
process.join()
"""

Writer = subprocess.Popen[str]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of this test will be; made by the first that publishes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(prometheus_client, "REGISTRY", CollectorRegistry())
    monkeypatch.setenv(metrics.STARTED_BY, "0")
    cached_functions = metrics._file_of, metrics._warn, metrics._expose
    for cached in (*cached_functions, metrics._starter):
        cached.cache_clear()
    # Another test may have made vLLM print what we log; here it is captured.
    monkeypatch.setattr(logging.getLogger("vllm_mmc"), "parent", logging.root)
    return tmp_path / f"vllm_mmc-{os.getuid()}"


@pytest.fixture
def writers() -> Iterator[list[Writer]]:
    started: list[Writer] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(writers: list[Writer], code: str, **counters: float) -> Writer:
    """Starts a process that has published `counters` when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    writers.append(process)
    if counters:
        send(process, **counters)
    return process


def send(process: Writer, **counters: float) -> None:
    assert process.stdin and process.stdout
    print(json.dumps(counters), file=process.stdin, flush=True)
    assert process.stdout.readline() == "published\n"


def scrape() -> dict[str, float]:
    """The samples of /metrics: name -> value."""
    metrics.expose()
    text = generate_latest(prometheus_client.REGISTRY).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.split() for line in lines)}


def graphs() -> float | None:
    return scrape().get("vllm_mmc:encoder_graphs_total")


def put(path: Path, name: str, value: float) -> None:
    """A file as another process would write it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    file = MmapedDict(str(path))
    file.write_value(mmap_key(name, f"{name}_total", [], [], "help"), value, 0.0)
    file.close()


# ---------------------------------------------------------------- what is reported


def test_sum_over_processes(writers: list[Writer]) -> None:
    assert scrape() == {}
    start(writers, WRITER, graphs=3, load_seconds=0.25)
    start(writers, WRITER, graphs=1, load_seconds=0.5, fallbacks=2)
    metrics.publish({"graphs": 7})
    assert scrape() == {
        "vllm_mmc:encoder_graphs_total": 11,
        "vllm_mmc:encoder_load_seconds_total": 0.75,
        "vllm_mmc:encoder_fallbacks_total": 2,
    }


def test_a_later_value_takes_the_place_of_the_first(writers: list[Writer]) -> None:
    writer = start(writers, WRITER, graphs=3)
    send(writer, graphs=4, recompiles=1)
    assert scrape() == {
        "vllm_mmc:encoder_graphs_total": 4,
        "vllm_mmc:encoder_recompiles_total": 1,
    }


def test_help_and_type_also_of_a_name_we_do_not_know() -> None:
    metrics.publish({"graphs": 1, "naps_taken": 2})
    metrics.expose()
    text = generate_latest(prometheus_client.REGISTRY).decode()
    assert "# HELP vllm_mmc:encoder_graphs_total Encoder graphs compiled." in text
    assert "# TYPE vllm_mmc:encoder_graphs_total counter" in text
    assert "# HELP vllm_mmc:encoder_naps_taken_total Encoder naps taken." in text


def test_a_scrape_by_name() -> None:
    metrics.publish({"graphs": 1, "followers": 2})
    metrics.expose()
    name = "vllm_mmc:encoder_followers_total"
    only = prometheus_client.REGISTRY.restricted_registry([name])
    assert f"{name} 2.0" in generate_latest(only).decode()


def test_exposed_twice_reported_once() -> None:
    metrics.publish({"graphs": 5})
    metrics.expose()
    metrics.expose()
    assert graphs() == 5


def test_a_forked_process_has_its_own_file(
    writers: list[Writer], directory: Path
) -> None:
    writer = start(writers, FORKED)
    assert writer.stdin and writer.stdout
    assert writer.stdout.readline() == "published\n"
    assert graphs() == 30
    writer.communicate("\n")
    assert list(directory.iterdir()) == []


def test_a_process_that_ray_has_started(
    writers: list[Writer], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not descend from the server, and has the environment of the engine."""
    metrics.expose()
    orphan = start(writers, ORPHAN, graphs=3)
    assert orphan.wait() == 0
    monkeypatch.setenv(metrics.STARTED_BY, "1")
    start(writers, ORPHAN, graphs=4)  # another server's
    assert len(list(directory.iterdir())) == 2
    assert graphs() == 3


def test_several_api_servers(
    writers: list[Writer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shared))
    # A counter of vLLM in the same process; its file is prometheus_client's own.
    own = "from prometheus_client import Counter; Counter('own', 'own').inc(5)\n"
    start(writers, own + WRITER, graphs=3)
    start(writers, own + WRITER, graphs=1)
    registry = CollectorRegistry()  # as vLLM makes it in every API server
    MultiProcessCollector(registry)
    text = generate_latest(registry).decode()
    assert "\nvllm_mmc:encoder_graphs_total 4.0\n" in text
    assert "\nown_total 10.0\n" in text
    assert scrape() == {}  # vLLM does not ask this registry then


# ---------------------------------------------------------------- what is not


def test_only_our_own_server(directory: Path) -> None:
    path = directory / f"counter_mmc_1_{os.getppid()}.db"
    put(path, "vllm_mmc:encoder_graphs", 9)
    assert graphs() is None
    assert path.exists()  # its process lives


def test_the_file_goes_with_its_process(writers: list[Writer], directory: Path) -> None:
    writer = start(writers, WRITER, graphs=3)
    assert len(list(directory.iterdir())) == 1
    writer.communicate()
    assert list(directory.iterdir()) == []


def test_a_killed_process(writers: list[Writer], directory: Path) -> None:
    start(writers, WRITER, graphs=1)
    killed = start(writers, WRITER, graphs=3)
    assert graphs() == 4
    killed.kill()
    killed.wait()
    assert graphs() == 1
    assert len(list(directory.iterdir())) == 2
    metrics._expose.cache_clear()  # the next server starts
    prometheus_client.REGISTRY = CollectorRegistry()
    assert graphs() == 1
    assert len(list(directory.iterdir())) == 1


def test_a_server_removes_the_file_of_its_killed_engine(
    writers: list[Writer], directory: Path
) -> None:
    assert start(writers, SERVER).communicate()[0] == "1\n"
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x09",
        b"no such thing" * 100,
        b"\xff" * 4096,
        b"\x00\x10\x00\x00" + b"\x00" * 4,  # ends before what it says it holds
    ],
    ids=["empty", "one byte", "text", "ones", "cut off"],
)
def test_a_damaged_file_is_left_out(
    writers: list[Writer], directory: Path, content: bytes
) -> None:
    metrics.publish({"graphs": 2})
    sleeper = start(writers, "input()")
    (directory / f"counter_mmc_0_{sleeper.pid}.db").write_bytes(content)
    (directory / "counter_mmc_x.db").write_bytes(content)
    (directory / "counter_mmc_0_4.db").mkdir()
    assert graphs() == 2


def test_metrics_of_others_are_left_out(writers: list[Writer], directory: Path) -> None:
    sleeper = start(writers, "input()")
    put(directory / f"counter_mmc_0_{sleeper.pid}.db", "vllm:prompt_tokens", 9)
    metrics.publish({"graphs": 2})
    assert scrape() == {"vllm_mmc:encoder_graphs_total": 2}


# ---------------------------------------------------------------- never raising


def test_the_directory_is_private(directory: Path) -> None:
    metrics.publish({"graphs": 2})
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_can_write_to_is_not_used(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(directory / f"counter_mmc_0_{os.getpid()}.db", "vllm_mmc:encoder_graphs", 9)
    directory.chmod(0o777)
    caplog.set_level(logging.WARNING)
    metrics.publish({"graphs": 2})
    metrics.publish({"graphs": 3})
    assert len(caplog.messages) == 1
    assert f"PermissionError: {directory} is open to other users" in caplog.text
    assert graphs() is None


def test_a_link_is_not_used(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    metrics.publish({"graphs": 2})
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert graphs() is None


def test_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = str(tmp_path / "no" / "where")
    monkeypatch.setattr(tempfile, "tempdir", nowhere)
    metrics.publish({"graphs": 2})
    assert graphs() is None
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", nowhere)
    metrics.publish({"graphs": 2})


def test_values_that_are_no_numbers() -> None:
    metrics.publish({"graphs": 2, "followers": None, "fallbacks": "x"})  # type: ignore
    assert graphs() == 2


def test_a_registry_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    prometheus_client.REGISTRY.register(metrics.EncoderCollector())
    caplog.set_level(logging.WARNING)
    metrics.expose()
    assert "are not on /metrics: " in caplog.text
