# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Features of vLLM beside the encoder: engines of one process, told what to do in turn.

The caller calls `run`; the process is this module run with `python -m`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_mmc.demo import media
from vllm_mmc.demo.checkpoints.qwen2_5_vl import RECIPE
from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT, default_engine_args
from vllm_mmc.demo.writer import HIDDEN, VISION_HIDDEN

GRID = (1, 12, 16)  # of patches, so 48 embeddings
QUESTION = "Who is this?"


@dataclass(frozen=True)
class Answer:
    """To one request.

    Attributes:
        tokens: Of the answer.
        prompt: How many tokens the prompt has, placeholders and all.
        cached: How many of these were in the prefix cache.
    """

    tokens: list[int]
    prompt: int
    cached: int


@dataclass(frozen=True)
class Findings:
    """What one process has found.

    Attributes:
        answers: Name of the step -> its answer.
        counters: Our counters at the end.
        eager_because: Name of the engine -> why its encoder is eager, or None.
        log: What the process has written.
    """

    answers: dict[str, Answer]
    counters: dict[str, float]
    eager_because: dict[str, str | None]
    log: str


def start(engine: str, checkpoint: Path, **engine_args: Any) -> dict[str, Any]:
    """Step: an engine of this name, beside those that there are."""
    args = {"checkpoint": str(checkpoint), "args": engine_args}
    return {"do": "start", "engine": engine, **args}


def ask(name: str, engine: str, sees: Any = (), adapter: Path | None = None) -> Any:
    """Step: one request.

    Args:
        name: Of the answer.
        engine: Which one.
        sees: Pictures by width and height, or "embeddings".
        adapter: Of LoRA.
    """
    known = {"name": name, "engine": engine, "sees": sees}
    return {"do": "ask", "adapter": str(adapter) if adapter else None, **known}


def reload(engine: str, checkpoint: Path) -> dict[str, Any]:
    """Step: the engine takes the weights of another checkpoint."""
    return {"do": "reload", "engine": engine, "checkpoint": str(checkpoint)}


def run(
    folder: Path, steps: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> Findings:
    """Runs the steps in a process of their own.

    Args:
        folder: For the files of this call.
        steps: From the three functions above.
        environment: Beside `ENGINE_ENVIRONMENT`.

    Raises:
        RuntimeError: The process failed; its message has the end of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job, output, log = (folder / name for name in ("job.json", "found.json", "log"))
    job.write_text(json.dumps({"steps": steps, "output": str(output)}))
    with log.open("w") as file:
        code = subprocess.run(
            [sys.executable, "-m", "mmc_testing.features", str(job)],
            env={**os.environ, **ENGINE_ENVIRONMENT, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    text = log.read_text()
    if code:
        raise RuntimeError(f"exit code {code}\n{text[-5000:]}")
    found = json.loads(output.read_text())
    answers = {name: Answer(**of) for name, of in found.pop("answers").items()}
    return Findings(answers=answers, log=text, **found)


# ---------------------------------------------------------------- checkpoints


def write_adapter(path: Path, layers: Mapping[str, tuple[int, int]]) -> Path:
    """Writes an adapter of rank 8, large enough to change an answer.

    Args:
        path: The directory.
        layers: Published name of a linear layer -> its input and output size.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, (inputs, outputs) in layers.items():
        for part, shape in (("A", (8, inputs)), ("B", (outputs, 8))):
            weights[f"base_model.model.{name}.lora_{part}.weight"] = (
                torch.randn(shape, generator=generator) * inputs**-0.25
            )
    save_file(weights, path / "adapter_model.safetensors")
    modules = sorted({name.rpartition(".")[2] for name in layers})
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    settings |= {"target_modules": modules, "task_type": "CAUSAL_LM", "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return path


LANGUAGE_LAYERS = {
    f"model.layers.{i}.self_attn.o_proj": (HIDDEN, HIDDEN) for i in range(2)
}
TOWER_LAYERS = {
    f"visual.blocks.{i}.attn.proj": (VISION_HIDDEN, VISION_HIDDEN) for i in range(4)
}


def write_quantised(checkpoint: Path, path: Path, config: Mapping[str, Any]) -> Path:
    """Writes a checkpoint again, with the linear layers of its text model in int8.

    Args:
        checkpoint: What is written again.
        path: The new directory.
        config: Of compressed-tensors: int8, one scale for each output channel.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, path)
    settings = json.loads((path / "config.json").read_text())
    settings["quantization_config"] = dict(config)
    (path / "config.json").write_text(json.dumps(settings))
    weights = {}
    for name, x in load_file(path / "model.safetensors").items():
        if re.search(r"^model\..*layers\.\d+\..*_proj\.weight$", name):
            scale = x.abs().amax(1, keepdim=True) / 127
            weights[f"{name}_scale"] = scale
            x = (x / scale).round().to(torch.int8)
        weights[name] = x
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


# ---------------------------------------------------------------- the process


def _request(sees: Any) -> dict[str, Any]:
    if sees == "embeddings":
        count = GRID[1] * GRID[2] // 4
        x = torch.randn(count, HIDDEN, generator=torch.manual_seed(0))
        image: Any = {"image_embeds": x, "image_grid_thw": torch.tensor([GRID])}
        prompt = RECIPE.prompt(QUESTION, images=1)
        return {"prompt": prompt, "multi_modal_data": {"image": image}}
    prompt = RECIPE.prompt(QUESTION, images=len(sees))
    pictures = [media.photograph_at(*size) for size in sees]
    return {"prompt": prompt} | (
        {"multi_modal_data": {"image": pictures}} if pictures else {}
    )


def _eager_because(model: Any) -> str | None:
    return getattr(model, "encoder_eager_because", None)


def _counters(_: Any) -> dict[str, float]:
    from vllm_mmc.compilation.counters import counters

    return asdict(counters)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    engines: dict[str, LLM] = {}
    adapters: dict[str, LoRARequest] = {}
    answers = {}
    for step in job["steps"]:
        if step["do"] == "start":
            args = default_engine_args(step["checkpoint"], **step["args"])
            engines[step["engine"]] = LLM(**args)
            continue
        llm = engines[step["engine"]]
        if step["do"] == "reload":
            path = {"weights_path": step["checkpoint"]}
            llm.collective_rpc("reload_weights", kwargs=path)
            # What the scheduler takes for granted of the workers, which forget it.
            llm.llm_engine.reset_encoder_cache()
            llm.reset_prefix_cache()
            continue
        lora = None
        if path := step["adapter"]:
            lora = adapters.setdefault(path, LoRARequest(path, len(adapters) + 1, path))
        (found,) = llm.generate(
            _request(step["sees"]), sampling, lora_request=lora, use_tqdm=False
        )
        answers[step["name"]] = Answer(
            tokens=list(found.outputs[0].token_ids),
            prompt=len(found.prompt_token_ids or ()),
            cached=found.num_cached_tokens or 0,
        )
    ((counted,), *_) = [llm.apply_model(_counters) for llm in engines.values()]
    why = {name: llm.apply_model(_eager_because)[0] for name, llm in engines.items()}
    found_here = {
        "answers": {name: asdict(answer) for name, answer in answers.items()},
        "counters": counted,
        "eager_because": why,
    }
    Path(job["output"]).write_text(json.dumps(found_here, indent=1))


if __name__ == "__main__":
    # The engine's own processes import the functions they are sent.
    from mmc_testing import features

    features.main()
