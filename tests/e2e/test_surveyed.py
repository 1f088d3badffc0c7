# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Encoders without a file of ours: surveyed, compiled, and answering as vLLM's own.

Two engines for each recipe, each in a process of its own: vLLM's class, eager, and
ours. What they answer greedily to all samples of the recipe is compared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmc_testing.answers import Findings, ask
from mmc_testing.recipes import RECIPES

QUICK = "llava_siglip"
"""The one of `make test`; the others take a minute or two each."""
STOCK = {"VLLM_PLUGINS": ""}
OURS = {"VLLM_PLUGINS": "mmc", "VLLM_LOGGING_LEVEL": "INFO"}
# With the operators of the compiled text model: with those that vLLM has for eager the
# text model of Kimi-VL answers otherwise.
EAGER: dict[str, Any] = {
    "enforce_eager": True,
    "compilation_config": {"custom_ops": ["none"]},
}
COMPILED: dict[str, Any] = {"compilation_config": {"compile_mm_encoder": True}}


class Engines:
    """The engines of one recipe; ours share a cache."""

    def __init__(self, recipe: str, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.checkpoint = RECIPES[recipe].write(folder / "checkpoint")
        self.dtype = RECIPES[recipe].engine_args.get("dtype", "float32")
        self._stock: Findings | None = None

    def stock(self) -> Findings:
        if self._stock is None:
            self._stock, _ = self._ask("stock", STOCK, **EAGER)
        return self._stock

    def ours(
        self, name: str, environment: Mapping[str, str] = {}, **engine_args: Any
    ) -> tuple[Findings, str]:
        given = {**OURS, "VLLM_CACHE_ROOT": str(self.folder / "cache"), **environment}
        return self._ask(name, given, **COMPILED, **engine_args)

    def _ask(
        self, name: str, environment: Mapping[str, str], **engine_args: Any
    ) -> tuple[Findings, str]:
        folder = self.folder / name
        return ask(self.recipe, self.checkpoint, folder, environment, **engine_args)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(QUICK, tmp_path_factory.mktemp(QUICK))


def assert_same_answers(ours: Findings, stock: Findings, dtype: str) -> None:
    assert ours.tokens == stock.tokens
    # Sums of eight logarithms. The graphs add in another order: in float32 that moves a
    # sum by 2e-6 to 8e-5 (Gemma 4), and another picture or operator by 1e-1 and more.
    # In bfloat16 a logit between 4 and 8 is a multiple of 2**-5, and one of each eight
    # can be the next multiple.
    tolerance = {"float32": 2e-4, "bfloat16": 8 * 2**-5}[dtype]
    assert ours.logprobs == pytest.approx(stock.logprobs, rel=0, abs=tolerance)


def assert_compiled(found: Findings) -> None:
    assert found.model.startswith("vllm_mmc.models.auto:Compiled")
    assert found.eager_because is None
    assert found.regions
    assert set(found.structures) == set(found.regions)
    assert set(found.structures.values()) == {None}
    assert found.end["graphs"] + found.end["artifact_loads"] >= len(found.regions)
    for fault in ("fallbacks", "rescues", "parity_failures"):
        assert found.end[fault] == 0, fault
    # No request waits for the compiler.
    assert found.end["graphs"] == found.start["graphs"]


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, marks=() if r == QUICK else pytest.mark.slow) for r in RECIPES],
)
def test_answers_as_stock(recipe: str, tmp_path: Path) -> None:
    engines = Engines(recipe, tmp_path)
    ours, log = engines.ours("ours")
    assert_compiled(ours)
    assert ours.end["parity_checks"] >= len(ours.regions)
    assert "encoder surveyed in" in log
    assert_same_answers(ours, engines.stock(), engines.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [QUICK, "qwen2_vl"])
def test_a_second_start_surveys_and_compiles_nothing(
    recipe: str, tmp_path: Path
) -> None:
    engines = Engines(recipe, tmp_path)
    first, _ = engines.ours("first")
    second, log = engines.ours("second")
    assert_compiled(second)
    assert "encoder surveyed at an earlier start" in log
    assert second.end["graphs"] == second.end["artifact_misses"] == 0
    assert second.end["artifact_loads"] == first.end["graphs"]
    assert (second.tokens, second.regions) == (first.tokens, first.regions)


@pytest.mark.slow
def test_in_an_engine_process(quick: Engines) -> None:
    """A server has its engine in a child process, too."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for our questions about the model
    }
    ours, _ = quick.ours("child", environment)
    assert_compiled(ours)
    assert_same_answers(ours, quick.stock(), quick.dtype)


@pytest.mark.slow
def test_without_the_check(quick: Engines) -> None:
    off = {"vllm_mmc": {"parity_check": "off"}}
    ours, _ = quick.ours("unchecked", additional_config=off)
    assert_compiled(ours)
    assert ours.end["parity_checks"] == 0
    assert_same_answers(ours, quick.stock(), quick.dtype)


@pytest.mark.slow
def test_without_surveys_the_class_is_vllms(quick: Engines) -> None:
    found, _ = quick.ours("unsurveyed", {"VLLM_MMC_SURVEY": "0"})
    stock = quick.stock()
    assert found.model == stock.model
    assert found.model.startswith("vllm.model_executor.models.")
    assert found.end["structures"] == 0
    assert found.tokens == stock.tokens
