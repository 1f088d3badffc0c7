# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What an engine answers on a recipe's samples, in a process of its own.

The caller calls `ask`; the process is this module run with `python -m`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmc_testing.recipes import RECIPES
from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT, default_engine_args

PACKAGES = Path(sys.prefix) / "packages"
"""What `make setup` installs there is on the path of engines that ask for it only."""


@dataclass(frozen=True)
class Findings:
    """One engine on the samples of one recipe.

    Attributes:
        model: Module and name of the model's class.
        tokens: Of the answer to each sample.
        logprobs: Cumulative, of each answer.
        eager_because: Why the encoder is eager; None if it is compiled.
        regions: Class of each region -> number of instances.
        eager: Class of each region that was left eager -> why.
        structures: Name of each structure -> why it, or calls of it, run eager.
        start: Our counters when the engine stood.
        end: Our counters after all answers.
        seconds: To start, and to answer.
    """

    model: str
    tokens: list[list[int]]
    logprobs: list[float]
    eager_because: str | None
    regions: dict[str, int]
    eager: dict[str, str]
    structures: dict[str, str | None]
    start: dict[str, float]
    end: dict[str, float]
    seconds: Sequence[float]


def ask(
    recipe: str,
    checkpoint: Path,
    folder: Path,
    environment: Mapping[str, str],
    **engine_args: Any,
) -> tuple[Findings, str]:
    """Returns what an engine did with the samples of a recipe, and its log.

    Args:
        recipe: its name in `RECIPES`.
        checkpoint: what the recipe has written.
        folder: for the files of this call.
        environment: beside `ENGINE_ENVIRONMENT`.
        engine_args: beside `default_engine_args` and the recipe's.

    Raises:
        RuntimeError: the process failed; its message has the end of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job, output, log = (folder / name for name in ("job.json", "found.json", "log"))
    job.write_text(
        json.dumps(
            {
                "recipe": recipe,
                "checkpoint": str(checkpoint),
                "output": str(output),
                "engine_args": engine_args,
            }
        )
    )
    given = {**os.environ, **ENGINE_ENVIRONMENT, **environment}
    if RECIPES[recipe].packages:
        given["PYTHONPATH"] = f"{PACKAGES}{os.pathsep}{given['PYTHONPATH']}"
    with log.open("w") as file:
        code = subprocess.run(
            [sys.executable, "-m", "mmc_testing.answers", str(job)],
            env=given,
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if code:
        raise RuntimeError(f"{recipe}: exit code {code}\n{log.read_text()[-5000:]}")
    return Findings(**json.loads(output.read_text())), log.read_text()


def _of_model(model: Any) -> tuple[str, str | None, dict[str, int], dict[str, str]]:
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    report = getattr(model, "encoder_report", None)
    survey = report.survey if report else None
    regions: dict[str, int] = {}
    for region in survey.regions if survey else ():
        count = regions.get(region.spec.name, 0)
        regions[region.spec.name] = count + len(region.paths)
    eager = dict(survey.eager) if survey else {}
    return name, getattr(model, "encoder_eager_because", None), regions, eager


def _of_process(_: Any) -> tuple[dict[str, float], dict[str, str | None]]:
    from vllm_mmc.compilation.counters import counters
    from vllm_mmc.compilation.shared_graph import structures

    said: dict[str, str | None] = {}
    for found in structures():
        name = found.spec.name
        said[name] = said.get(name) or found.eager or found.failure
    return asdict(counters), said


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())

    from vllm import LLM, SamplingParams

    recipe = RECIPES[job["recipe"]]
    recipe.mend_stock()
    clock = [time.perf_counter()]
    engine_args = {**recipe.engine_args, **job["engine_args"]}
    llm = LLM(**default_engine_args(job["checkpoint"], **engine_args))
    clock.append(time.perf_counter())
    # In the process of the engine, whichever that is.
    ((start, _),) = llm.apply_model(_of_process)
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
    answers = [
        llm.generate(recipe.request(items), sampling, use_tqdm=False)[0].outputs[0]
        for items in recipe.samples
    ]
    clock.append(time.perf_counter())
    ((end, structures),) = llm.apply_model(_of_process)
    ((model, eager_because, regions, eager),) = llm.apply_model(_of_model)
    found = Findings(
        model=model,
        tokens=[list(answer.token_ids) for answer in answers],
        logprobs=[answer.cumulative_logprob for answer in answers],
        eager_because=eager_because,
        regions=regions,
        eager=eager,
        structures=structures,
        start=start,
        end=end,
        seconds=(clock[1] - clock[0], clock[2] - clock[1]),
    )
    Path(job["output"]).write_text(json.dumps(asdict(found), indent=1))


if __name__ == "__main__":
    # The engine's own processes import the functions they are sent.
    from mmc_testing import answers

    answers.main()
