# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The process that tests of the plugin fork."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.in_vllm import InVllm, Outcome, fork_on_request


@pytest.fixture(scope="session")
def in_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InVllm]:
    """Starts the process that is forked; one does for all files."""
    directory = tmp_path_factory.mktemp("in_vllm")
    source = inspect.getsource(fork_on_request) + "\nfork_on_request()"
    ours = {name for name in os.environ if name.startswith(("VLLM_MMC_", "VLLM_PLUG"))}
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in ours},
    )

    def answer(wanted: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:  # vLLM may print while it is imported
            if line.strip() == wanted:
                return
        raise RuntimeError("the process that is forked has ended")

    def run(function: Callable[[], Any], **env: str) -> Outcome:
        assert process.stdin is not None
        value, output = directory / "value.json", directory / "output.txt"
        value.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
        request = {
            "source": textwrap.dedent(inspect.getsource(function)),
            "name": function.__name__,
            "env": env,
            "value": str(value),
            "output": str(output),
        }
        print(json.dumps(request), file=process.stdin, flush=True)
        answer("done")
        text = output.read_text()
        assert value.exists(), text
        return Outcome(json.loads(value.read_text()), text)

    answer("ready")
    yield run
    process.kill()
    process.wait()
