# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The counters of the encoder processes as Prometheus metrics of the API server.

A process that compiles encoders publishes its counters in a file of its own, in the
format of `prometheus_client`'s multiprocess mode. The API server reads the files when
/metrics is asked for, and sums them:

- several API servers: vLLM has set PROMETHEUS_MULTIPROC_DIR for all its processes, and
  each server reports all that lies there. Nothing to add;
- one API server: the files lie in a private directory, and a collector on vLLM's own
  registry reads those of its process, of the processes that descend from it, and of
  those that Ray has started for one of them on this machine. Ray's processes descend
  from Ray, and get the environment of the engine: a variable names the engine.

vLLM's entry-point group for metrics, `vllm.stat_logger_plugins`, is not used: a plugin
in it, even one that does nothing, overrules --disable-log-stats.
"""

import functools
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_mmc.compat import symbols

if TYPE_CHECKING:
    from prometheus_client import Metric

logger = logging.getLogger(__name__)

PREFIX = "vllm_mmc:encoder_"
STARTED_BY = "MMC_STARTED_BY"
"""Environment variable: the process that has started this one. Variables whose names
start with VLLM_ are refused by vLLM, or are part of its compile cache key."""

HELP = {
    "structures": "Encoder structures met; each has one leader.",
    "followers": "Encoder regions that reuse the compiled function of a leader.",
    "graphs": "Encoder graphs compiled.",
    "recompiles": "Encoder graphs compiled for a structure that already had one.",
    "artifact_loads": "Encoder graphs loaded from the compile cache.",
    "artifact_misses": "Encoder graphs that were not found in the compile cache.",
    "unkept": "Encoder graphs compiled that the compile cache does not keep.",
    "fallbacks": "Encoder graphs that could not be compiled and run eager.",
    "rescues": "Encoder graphs that raised where eager did not; not used again.",
    "parity_checks": "Comparisons of a compiled encoder region with the eager one.",
    "parity_failures": "Encoder structures that run eager: compiled, they differed.",
    "measured_eager": "Encoder structures that run eager: compiled, they were slower.",
    "replays": "Calls of an audio encoder that a CUDA graph has answered.",
    "dynamo_seconds": "Seconds spent on tracing encoder graphs.",
    "inductor_seconds": "Seconds spent on compiling traced encoder graphs.",
    "load_seconds": "Seconds spent on loading encoder graphs from the compile cache.",
}


def publish(counters: Mapping[str, float]) -> None:
    """Let the API server report these values of this process from now on.

    Costs some microseconds after the first call. Never raises: what goes wrong is said
    in one WARNING.

    Args:
        counters: name -> total since the process started. `graphs` becomes the metric
            `vllm_mmc:encoder_graphs_total`, and so on for any name.
    """
    try:
        file = _file_of(os.getpid())
        for name, value in counters.items():
            file.write_value(_key(name), float(value), 0.0)
    except Exception as error:
        _warn("are not published", f"{type(error).__name__}: {error}")


def expose() -> None:
    """Report on `prometheus_client.REGISTRY` what descending processes publish.

    Also removes what killed processes left, now and when this process ends. Never
    raises.
    """
    try:
        _expose()
    except Exception as error:
        _warn("are not on /metrics", f"{type(error).__name__}: {error}")


class EncoderCollector:
    """A collector for `prometheus_client`: the sums over this process and its heirs."""

    def describe(self) -> Iterable["Metric"]:
        from prometheus_client.metrics_core import CounterMetricFamily

        return [CounterMetricFamily(PREFIX + name, HELP[name]) for name in HELP]

    def collect(self) -> Iterable["Metric"]:
        try:
            files = [file for file in _files_of_descendants() if _readable(file)]
            merged: Iterable[Metric] = symbols.MERGE_FILES.need()(files)
            return merged
        except Exception as error:
            _warn("are not on /metrics", f"{type(error).__name__}: {error}")
            return []


@functools.cache
def _expose() -> None:
    from prometheus_client import REGISTRY

    _starter(os.getpid())
    os.environ[STARTED_BY] = str(os.getpid())
    _remove_files_of_the_dead()
    Finalize(None, _remove_files_of_the_dead, exitpriority=-1)  # children end before
    REGISTRY.register(EncoderCollector())


@functools.cache
def _file_of(pid: int) -> Any:
    """The file of this process, empty. (A forked process has another `pid`.)"""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    directory = Path(shared) if shared else _private_directory()
    path = directory / f"counter_mmc_{_starter(pid)}_{pid}.db"
    # Under its name only when it can be read: a reader stumbles over an empty file.
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    file = symbols.MMAP_FILE.need()(str(draft))
    draft.replace(path)
    if not shared:  # vLLM removes its own directory
        Finalize(None, functools.partial(path.unlink, missing_ok=True), exitpriority=0)
    return file


@functools.cache
def _starter(pid: int) -> str:
    """Who has started this process; "0" if nobody said so."""
    return os.environ.get(STARTED_BY, "0")


@functools.cache
def _key(name: str) -> str:
    metric = PREFIX + name
    text = HELP.get(name, f"Encoder {name.replace('_', ' ')}.")
    key: str = symbols.MMAP_KEY.need()(metric, f"{metric}_total", [], [], text)
    return key


def _private_directory() -> Path:
    """The directory of this user, which nobody else can write to.

    Raises:
        OSError: It cannot be made, or somebody else made it.
    """
    directory = _directory()
    directory.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(directory):
        raise PermissionError(f"{directory} is open to other users")
    return directory


def _directory() -> Path:
    return Path(tempfile.gettempdir()) / f"vllm_mmc-{os.getuid()}"


def _is_private(directory: Path) -> bool:
    found = directory.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not found.st_mode & 0o077


_PIDS = re.compile(r"counter_mmc_(\d+)_(\d+)\.db")


def _files() -> Iterator[tuple[int, int, Path]]:
    """Every file that a process of this user has published, after its pid and that of
    who has started it."""
    directory = _directory()
    if os.path.lexists(directory) and _is_private(directory):
        for file in directory.glob("counter_mmc_*.db"):
            if (pids := _PIDS.fullmatch(file.name)) is not None:
                yield int(pids[2]), int(pids[1]), file


def _remove_files_of_the_dead() -> None:
    import psutil

    for pid, _, file in _files():
        if not psutil.pid_exists(pid):
            file.unlink(missing_ok=True)


def _files_of_descendants() -> Iterator[Path]:
    import psutil

    if files := list(_files()):
        descendants = psutil.Process().children(recursive=True)
        own = {os.getpid(), *(process.pid for process in descendants)}
        for pid, starter, file in files:
            if not own.isdisjoint((pid, starter)):
                yield file


def _readable(file: Path) -> bool:
    try:
        for metric in symbols.MERGE_FILES.need()([file]):
            if not metric.name.startswith(PREFIX):
                raise ValueError(f"not a counter of an encoder: {metric.name}")
    except Exception as error:
        _warn(f"in {file.name} are left out", f"{type(error).__name__}: {error}")
        return False
    return True


@functools.cache
def _warn(what: str, reason: str) -> None:
    logger.warning("The counters of the encoders %s: %s", what, reason)
