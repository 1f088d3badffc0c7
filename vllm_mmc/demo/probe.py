# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""One real engine in a fresh process: what it answers, computes and costs.

The caller builds a `Probe` and calls `run`; the child process is this module run with
`python -m`. vLLM is imported in the child only.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_mmc.demo.engine import (
    ENGINE_ENVIRONMENT,
    default_engine_args,
    end_process_group,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

MAX_TOKENS = 16


@dataclass(frozen=True)
class Probe:
    """What to ask of an engine.

    Attributes:
        checkpoint: directory of a tiny checkpoint; written first if it is not there.
        family: of the checkpoint, one of `vllm_mmc.demo.offered()`.
        depth: blocks of the checkpoint's encoder.
        engine_args: beside `default_engine_args` and the family's.
        prompts: one request each: its items, as in `writer.Recipe.samples`.
        timed_runs: encoder calls to time, on the largest input among the requests.
    """

    checkpoint: str
    family: str
    depth: int
    engine_args: dict[str, Any]
    prompts: list[list[Any]]
    timed_runs: int = 21


@dataclass(frozen=True)
class Findings:
    """What an engine did.

    Attributes:
        model: "module:Class" of the loaded model.
        tokens: per prompt, the greedy answer's token ids, or the class of each token,
            or, of one probability per option, the options' order.
        embeddings: per encoder call, [tokens, hidden size], float32.
        start_seconds: from nothing to an engine that can answer, imports excluded.
        compile_seconds: of the encoder.
        graphs: compiled for the encoder.
        artifact_loads: encoder graphs taken from the cache.
        encoder_ms: median of the timed encoder calls.
    """

    model: str
    tokens: list[list[int]]
    embeddings: "list[np.ndarray[Any, Any]]"
    start_seconds: float
    compile_seconds: float
    graphs: int
    artifact_loads: int
    encoder_ms: float


class Run:
    """A probe that is running. A context manager: leaving ends the process.

    Args:
        probe: what to ask.
        directory: for the log and the results; must exist and be used once.
        env: added to this process's environment and `ENGINE_ENVIRONMENT`. An empty
            value takes nothing away: `{"VLLM_PLUGINS": ""}` means no plugin.
    """

    def __init__(self, probe: Probe, directory: Path, env: Mapping[str, str]) -> None:
        self.directory = directory
        self.log = directory / "engine.log"
        (directory / "probe.json").write_text(json.dumps(asdict(probe)))
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm_mmc.demo.probe", str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENGINE_ENVIRONMENT, **env},
                start_new_session=True,
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        end_process_group(self.process)

    def finished(self) -> bool:
        return self.process.poll() is not None

    def findings(self) -> Findings:
        """Waits for the process and returns what it found.

        Raises:
            RuntimeError: with the end of its log, if it failed.
        """
        import numpy as np

        if code := self.process.wait():
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
            raise RuntimeError(f"the engine's process ended with {code}:\n{tail}")
        found = json.loads((self.directory / "findings.json").read_text())
        with np.load(self.directory / "embeddings.npz") as arrays:
            embeddings = [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
        return Findings(embeddings=embeddings, **found)


def _answer(probe: Probe) -> Findings:
    """Runs in the child."""
    import torch
    from vllm import LLM, PoolingParams, SamplingParams

    from vllm_mmc.demo import families

    family = families.family(probe.family)
    if not Path(probe.checkpoint).exists():
        family.write(probe.checkpoint, depth=probe.depth)
    started = time.monotonic()
    args = {**family.engine_args, **probe.engine_args}
    llm = LLM(**default_engine_args(probe.checkpoint, **args))
    start_seconds = time.monotonic() - started

    tokens = []
    # The engine lives in this process, so this is the model that answers.
    (model,) = llm.apply_model(lambda model: model)
    if type(model).__module__.startswith("vllm."):
        family.mend_model(model)
    calls = recorded_calls(model)
    for items in probe.prompts:
        request = family.request(items)
        if args.get("runner") == "pooling":
            (pooled,) = llm.encode(
                [request],
                PoolingParams(**family.pooling),
                pooling_task="token_classify",
                use_tqdm=False,
            )
            found = pooled.outputs.data
            assert len(found), "nothing is pooled"
            classes = found.argsort() if found.dim() == 1 else found.argmax(-1)
            tokens.append(classes.tolist())
            continue
        sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        (answer,) = llm.generate([request], sampling, use_tqdm=False)
        tokens.append(list(answer.outputs[0].token_ids))

    repeat, _ = max(calls, key=lambda call: call[1].shape[0])
    with torch.inference_mode():
        times = []
        for _ in range(3 + probe.timed_runs):
            begun = time.perf_counter()
            repeat()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            times.append(1000 * (time.perf_counter() - begun))

    # Without the plugin nothing has imported our counters, and nothing is compiled.
    ours = sys.modules.get("vllm_mmc.compilation.counters")
    config = llm.llm_engine.vllm_config.compilation_config
    return Findings(
        model=f"{type(model).__module__}:{type(model).__name__}",
        tokens=tokens,
        embeddings=[output.float().cpu().numpy() for _, output in calls],
        start_seconds=start_seconds,
        compile_seconds=config.encoder_compilation_time,
        graphs=ours.counters.graphs if ours else 0,
        artifact_loads=ours.counters.artifact_loads if ours else 0,
        encoder_ms=statistics.median(times[3:]),
    )


def recorded_calls(model: Any) -> "list[tuple[Callable[[], Any], torch.Tensor]]":
    """Records the calls of a model's encoder from now on.

    vLLM's model runners call `embed_multimodal` or, for an encoder in CUDA graphs,
    their graph manager.

    Returns:
        A list that grows with each call: what repeats the call, and the embeddings
        [tokens, hidden size] of its items.
    """
    import torch
    from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

    calls: list[tuple[Callable[[], Any], torch.Tensor]] = []
    inside = False

    def unrecorded(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        outside, inside = inside, True
        try:
            return call(*args, **kwargs)
        finally:
            inside = outside

    def recorded(call: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            # The manager calls the model with what fits no graph: one call, not two.
            again = partial(unrecorded, call, *args, **kwargs)
            if inside:
                return again()
            items = again()
            calls.append((again, torch.cat(list(items))))
            return items

        return record

    model.embed_multimodal = recorded(model.embed_multimodal)
    EncoderCudaGraphManager.execute = recorded(EncoderCudaGraphManager.execute)
    return calls


def _main(directory: Path) -> None:
    import numpy as np

    findings = _answer(Probe(**json.loads((directory / "probe.json").read_text())))
    np.savez(directory / "embeddings.npz", *findings.embeddings)
    found = {k: v for k, v in vars(findings).items() if k != "embeddings"}
    (directory / "findings.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
