# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""How the demo, the tests and the benchmarks start an engine on a tiny checkpoint."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

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
