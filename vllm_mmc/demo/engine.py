# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""How the demo, the tests and the benchmarks start an engine on a tiny checkpoint."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
"""The command `vllm`, of this environment."""

MIB = 1 << 20

# For processes that run an engine. One thread: the tiny models' operations are too
# small to share, and threads that wait for each other cost five times as much.
# V1_MULTIPROCESSING=0 keeps the engine in the calling process, which saves the import
# of vLLM in two more processes; a server still has its engine in a child process.
ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


def default_engine_args(checkpoint: Path | str, **overrides: Any) -> dict[str, Any]:
    """Returns keyword arguments for `vllm.LLM` or `EngineArgs`, small and float32.

    Args:
        checkpoint: directory of a tiny checkpoint.
        overrides: further arguments, or other values for these.
    """
    return {
        "model": str(checkpoint),
        "dtype": "float32",
        "max_model_len": 2048,
        "max_num_seqs": 4,
        "limit_mm_per_prompt": {"image": 2, "video": 1},
        # In bytes: VLLM_CPU_KVCACHE_SPACE counts whole GiB. With an explicit size
        # and enforce_eager the CPU worker skips its warm-up run.
        "kv_cache_memory_bytes": 128 * MIB,
        "disable_log_stats": True,
        "seed": 0,
    } | overrides


def end_process_group(
    process: "subprocess.Popen[Any]", *, patience_s: float = 20
) -> None:
    """Ends a process that leads its own session, and everything it started.

    Args:
        process: started with `start_new_session=True`.
        patience_s: seconds between the request to end and the kill.
    """
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    # Children that outlived it, or all of them if it did not listen.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Serving(NamedTuple):
    """A server that runs.

    Attributes:
        url: for instance "http://127.0.0.1:12345".
        seconds: from the start of the process until it was healthy.
        pid: of its first process, which started the others.
    """

    url: str
    seconds: float
    pid: int


@contextlib.contextmanager
def serving(
    arguments: Sequence[str], log: Path, env: Mapping[str, str], deadline_s: float
) -> Iterator[Serving]:
    """Runs `vllm serve` on a free loopback port, and ends it on leaving.

    Args:
        arguments: of the command, the model first.
        log: file for the server's output.
        env: added to this process's environment.
        deadline_s: seconds until the server must be healthy.

    Raises:
        RuntimeError: with the end of the log, if the server exits or is not healthy in
            time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*VLLM, "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(env),
            start_new_session=True,
        )
    try:
        while not _healthy(url):
            code, waited = process.poll(), time.monotonic() - started
            if code is not None or waited > deadline_s:
                said = f"exited with {code}"
                if code is None:
                    said = f"is not healthy after {waited:.0f} s"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
                raise RuntimeError(f"`vllm serve` {said}:\n{tail}")
            time.sleep(0.2)
        yield Serving(url, time.monotonic() - started, process.pid)
    finally:
        end_process_group(process)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
