# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the plugin says when an engine starts, and in which process."""

import re

import pytest

from tests.unit.in_vllm import InVllm
from vllm_mmc import __version__
from vllm_mmc.catalog import EAGER

INFO = {"VLLM_LOGGING_LEVEL": "INFO"}


def engine_start() -> None:
    """The order of every engine's start: plugins, logging, then the model."""
    import logging
    import os

    from vllm.engine.arg_utils import EngineArgs
    from vllm.logger import configure_logging_if_needed

    args = EngineArgs(model=".")
    print("before logging", flush=True)
    configure_logging_if_needed(args.create_logging_config())
    logger = logging.getLogger("vllm.config.model")
    logger.info("Downcasting torch.float32 to torch.float16.")
    for architecture in os.environ["ARCHITECTURES"].split(","):
        logger.info("Resolved architecture: %s", architecture)
    logging.getLogger("vllm_mmc.compilation.regions").info("[Block] compiled")


def test_one_line_when_an_engine_starts(in_vllm: InVllm) -> None:
    """Also where vLLM resolves the model twice."""
    name = "Qwen2_5_VLForConditionalGeneration"
    outcome = in_vllm(engine_start, **INFO, ARCHITECTURES=f"{name},{name}")
    (line,) = outcome.lines()
    assert " INFO " in line
    assert line.endswith(
        f"vllm_mmc {__version__} serves {name}. With compile_mm_encoder it compiles: "
        "patch embed, block, merger."
    )
    before, after = outcome.output.split("before logging")
    assert line not in before  # `vllm --version` prints a version and no more
    assert re.search(r" INFO .*\[Block\] compiled", after)  # our other loggers too


def test_the_line_of_a_surveyed_model(in_vllm: InVllm) -> None:
    name = "LlavaForConditionalGeneration"
    (line,) = in_vllm(engine_start, **INFO, ARCHITECTURES=name).lines()
    assert f"serves {name}. " in line
    assert line.endswith("it compiles: what a survey of its encoder finds.")
    env = INFO | {"VLLM_MMC_SURVEY": "0"}
    assert in_vllm(engine_start, **env, ARCHITECTURES=name).lines() == []


def test_each_model_of_an_engine_has_its_line(in_vllm: InVllm) -> None:
    names = "CompiledWhisperForConditionalGeneration", "Llama4ForConditionalGeneration"
    first, second = in_vllm(engine_start, **INFO, ARCHITECTURES=",".join(names)).lines()
    assert f"serves {names[0]}. With compile_mm_encoder it compiles: block." in first
    assert f"serves {names[1]}. " in second


@pytest.mark.parametrize("name", ["LlamaForCausalLM", *list(EAGER)[:1], "Unknown"])
def test_no_line_of_what_is_not_ours(in_vllm: InVllm, name: str) -> None:
    assert in_vllm(engine_start, **INFO, ARCHITECTURES=name).lines() == []


def test_the_line_says_that_it_is_off(in_vllm: InVllm) -> None:
    env = INFO | {"VLLM_MMC_DISABLE": "1", "ARCHITECTURES": "A,A"}
    (line,) = in_vllm(engine_start, **env).lines()
    assert line.endswith("is switched off (VLLM_MMC_DISABLE=1)")


def test_no_line_at_level_warning(in_vllm: InVllm) -> None:
    env = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "ARCHITECTURES": "WhisperForConditionalGeneration",
    }
    assert in_vllm(engine_start, **env).lines() == []


@pytest.mark.parametrize("env", [{}, {"VLLM_MMC_DISABLE": "yes"}])
@pytest.mark.parametrize("main_process", [True, False])
def test_only_the_main_process_speaks(
    in_vllm: InVllm, main_process: bool, env: dict[str, str]
) -> None:
    def in_main() -> None:
        import logging

        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging

        from vllm_mmc.plugin import register

        configure_logging(LoggingConfig(log_level="INFO"))
        register()
        register()
        name = "WhisperForConditionalGeneration"
        logging.getLogger("vllm.config.model").info("Resolved architecture: %s", name)

    def in_child() -> None:
        import logging
        import multiprocessing

        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging

        from vllm_mmc.plugin import register

        def start() -> None:
            register()
            name = "WhisperForConditionalGeneration"
            logger = logging.getLogger("vllm.config.model")
            logger.info("Resolved architecture: %s", name)

        configure_logging(LoggingConfig(log_level="INFO"))
        process = multiprocessing.get_context("fork").Process(target=start)
        process.start()
        process.join()
        assert process.exitcode == 0

    lines = in_vllm(in_main if main_process else in_child, **env).lines()
    assert len(lines) == main_process


def test_logging_hooks_can_be_undone(in_vllm: InVllm) -> None:
    def scenario() -> bool:
        import logging

        from vllm_mmc.compat import vllm_logging
        from vllm_mmc.plugin import register

        ours, starts = map(logging.getLogger, ("vllm_mmc", vllm_logging.STARTS))
        before = (ours.parent, list(starts.filters))
        register()
        assert (ours.parent, starts.filters) != before
        vllm_logging.leave()
        return (ours.parent, starts.filters) == before

    assert in_vllm(scenario).value
