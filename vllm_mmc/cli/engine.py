# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Start an engine as `vllm serve` would, to see what becomes of its encoder."""

import argparse
import contextlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class StructureReport(NamedTuple):
    """What has become of one structure.

    Attributes:
        name: The region.
        eager_because: Why it runs eager, at least in part; None if it is compiled.
        measured: What a measurement has shown (setting `measure`).
    """

    name: str
    eager_because: str | None
    measured: str | None = None


@dataclass(frozen=True)
class EncoderReport:
    """What one worker says of its encoder.

    Attributes:
        model: "module:Class" of the loaded model.
        eager_because: Why the encoder is not compiled; None if it is.
        structures: One of each.
        counters: See `vllm_mmc.compilation.counters`.
        never_compiled: Class that a survey left eager -> why.
        changes: What takes the place of which stock modules, and the surveyed regions.
        unkept: Region that the compile cache does not keep -> why.
    """

    model: str
    eager_because: str | None
    structures: list[StructureReport]
    counters: dict[str, int | float]
    never_compiled: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    unkept: dict[str, str] = field(default_factory=dict)


def add_engine_arguments(
    parser: argparse.ArgumentParser, *, nargs: str | None = None
) -> None:
    parser.add_argument("model", nargs=nargs, help="as for `vllm serve`")
    parser.add_argument(
        "engine_args",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="engine arguments, as for `vllm serve`",
    )


class UsageError(ValueError):
    """The user asks for what cannot be: one line says what, and what to do."""


@dataclass(frozen=True)
class Outcome:
    """What starting an engine has shown.

    Attributes:
        reports: One of each worker.
        missed: With `explain`: name of the cache entry -> reasons for the miss, or None
            for a hit.
    """

    reports: list[EncoderReport]
    missed: dict[str, list[str] | None]


def start(
    model: str, arguments: Sequence[str], *, compiled: bool, explain: bool = False
) -> Outcome:
    """Start an engine, let it do its profile run (compile or load), and end it.

    As under `vllm serve`, it runs in a process that is started when the configuration
    is known: vLLM sets variables of the environment for it, which decide how Inductor
    compiles and are part of every key.

    Args:
        arguments: Those of `vllm serve` that concern the engine.
        compiled: Turn `compile_mm_encoder` on, whatever the arguments say.
        explain: Compile no encoder, but tell what the cache has of it.

    Raises:
        UsageError: There is no such model, the model is not multimodal, or vLLM
            refuses an argument.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # not part of any key
    try:
        config = _engine_args(model, arguments, compiled).create_engine_config()
    except (OSError, ValueError) as error:
        raise UsageError(f"{model}: {_first_reason(error)}") from error
    if not config.model_config.is_multimodal_model:
        raise UsageError(
            f"{model} is not a multimodal model of vLLM: there is no encoder to compile"
        )
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_started, model, arguments, compiled, explain).result()


def _first_reason(error: Exception) -> str:
    errors = getattr(error, "errors", None)  # pydantic's, each with a message
    text = errors()[0]["msg"] if callable(errors) else str(error)
    return " ".join(text.split())


def _engine_args(model: str, arguments: Sequence[str], compiled: bool) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="vllm-mmc"))
    engine_args = EngineArgs.from_cli_args(
        parser.parse_args(["--model", model, *arguments])
    )
    if compiled:
        engine_args.compilation_config.compile_mm_encoder = True
    return engine_args


def _started(
    model: str, arguments: Sequence[str], compiled: bool, explain: bool
) -> Outcome:
    from vllm import LLM

    from vllm_mmc.cache.explain import why_missed
    from vllm_mmc.cache.store import explain_lookups

    missed: dict[str, list[str] | None] = {}
    with contextlib.ExitStack() as stack:
        if explain:
            stack.enter_context(
                explain_lookups(
                    lambda entry, changed: missed.update(
                        {entry.directory.name: why_missed(entry, changed)}
                    )
                )
            )
        llm = LLM.from_engine_args(_engine_args(model, arguments, compiled))
        return Outcome(llm.apply_model(_report), missed)


def _report(model: Any) -> EncoderReport:
    from vllm_mmc.compilation.counters import counters
    from vllm_mmc.compilation.shared_graph import structures

    name = f"{type(model).__module__}:{type(model).__name__}"
    because = getattr(model, "encoder_eager_because", "")
    if because == "":
        because = "this architecture is vLLM's own here: see `vllm-mmc list`"
    report = getattr(model, "encoder_report", None)
    survey = report.survey if report is not None else None
    return EncoderReport(
        name,
        because,
        [
            StructureReport(s.spec.name, s.eager or s.failure, s.measured)
            for s in structures()
        ],
        asdict(counters),
        dict(survey.eager) if survey is not None else {},
        list(report.lines()) if report is not None else [],
        {s.spec.name: s.unkept for s in structures() if s.unkept is not None},
    )
