# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Features of vLLM beside a compiled encoder: engines answer as stock's do.

As few engines as possible: each has several features at once, and stock has the same.

Elsewhere: pooling (Clef-Omni and Qwen3-ASR's forced aligner, in
`test_demo_command.py`), the tokens that speculative decoding asks for and the graphs of
a quantised model's encoder (`tests/models/test_qwen2_5_vl.py`,
`tests/cache/test_quantised.py`).
"""

from pathlib import Path
from typing import Any

import pytest
from vllm.config import CompilationMode

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, tower_context
from mmc_testing.features import (
    LANGUAGE_LAYERS,
    TOWER_LAYERS,
    Findings,
    ask,
    reload,
    run,
    start,
    write_adapter,
    write_quantised,
)
from tests.cache.test_quantised import COMPRESSED_TENSORS

pytestmark = pytest.mark.slow  # six engines in five processes

STOCK = {"VLLM_MMC_DISABLE": "1"}
COMPILED = {"compilation_config": {"compile_mm_encoder": True}}
EAGER = {"enforce_eager": True}
ONE, TWO = [(448, 336)], [(280, 280), (84, 140)]
STEP = 64
"""Tokens of one step of the engine: fewer than the 192 placeholders of `ONE`."""
ADAPTERS = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
TOWER = ADAPTERS | {"enable_tower_connector_lora": True}
CUT = {
    "max_num_batched_tokens": STEP,
    "enable_prefix_caching": True,
    "enable_mm_embeds": True,
    "limit_mm_per_prompt": {"image": 2, "video": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def others(folder: Path) -> Path:
    """Other weights of the same model."""
    return FAMILIES["qwen2_5_vl"].write(folder / "others", depth=4, seed=1)


@pytest.fixture(scope="module")
def language(folder: Path) -> Path:
    return write_adapter(folder / "language", LANGUAGE_LAYERS)


@pytest.fixture(scope="module")
def tower(folder: Path) -> Path:
    return write_adapter(folder / "tower", TOWER_LAYERS)


@pytest.fixture(scope="module")
def asked(qwen2_5_vl: Path, others: Path) -> list[object]:
    """Of one engine: what the first two tests are about."""
    return [
        ask("one", "main", ONE),
        ask("again", "main", ONE),
        ask("two", "main", TWO),
        ask("text", "main"),
        ask("embeddings", "main", "embeddings"),
        reload("main", others),
        ask("others", "main", ONE),
        reload("main", qwen2_5_vl),
        ask("back", "main", ONE),
    ]


@pytest.fixture(scope="module")
def stock(
    folder: Path, qwen2_5_vl: Path, asked: list[object], language: Path, tower: Path
) -> Findings:
    steps = [
        start("main", qwen2_5_vl, **CUT, **TOWER, **EAGER),
        *asked,
        ask("adapter", "main", ONE, adapter=language),
        ask("tower", "main", ONE, adapter=tower),
    ]
    return run(folder / "stock", steps, STOCK)


@pytest.fixture(scope="module")
def ours(folder: Path, qwen2_5_vl: Path, asked: list[object]) -> Findings:
    none = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
    steps = [
        start("main", qwen2_5_vl, **CUT, **COMPILED),
        *asked,
        start("text only", qwen2_5_vl, **none, **COMPILED),
        ask("text, no encoder", "text only"),
        ask("one, beside another engine", "main", ONE),
        ask("two, beside another engine", "main", TWO),
    ]
    return run(folder / "ours", steps, {})


def test_answers_as_stock_does(ours: Findings, stock: Findings) -> None:
    """From the prefix cache, in steps, from embeddings, with reloaded weights."""
    theirs = {name: answer.tokens for name, answer in stock.answers.items()}
    for name in theirs.keys() & ours.answers.keys():
        assert ours.answers[name].tokens == theirs[name], name
    assert theirs["again"] == theirs["back"] == theirs["one"]
    different = ("one", "two", "text", "embeddings", "adapter", "tower", "others")
    assert len({tuple(theirs[name]) for name in different}) == len(different)


def test_a_picture_was_cut_and_kept(ours: Findings) -> None:
    """Its placeholders did not fit into one step; the second time they were known."""
    first, again = ours.answers["one"], ours.answers["again"]
    assert first.prompt > 3 * STEP and first.cached == 0
    assert again.cached > 3 * STEP


def test_nothing_was_compiled_twice(ours: Findings) -> None:
    """One graph for each kind of region, whatever the features; a reload keeps it."""
    counted = ours.counters
    assert counted["graphs"] + counted["artifact_loads"] == 3
    assert counted["recompiles"] == counted["fallbacks"] == counted["rescues"] == 0
    assert ours.eager_because["main"] is None


def test_a_second_engine_in_the_process(ours: Findings) -> None:
    """With no pictures allowed it has no encoder, and it disturbs nothing."""
    answers = ours.answers
    assert answers["text, no encoder"].tokens == answers["text"].tokens
    for name in ("one", "two"):
        assert answers[f"{name}, beside another engine"].tokens == answers[name].tokens


def test_adapters(
    folder: Path, qwen2_5_vl: Path, language: Path, tower: Path, stock: Findings
) -> None:
    """Of the text model and of the tower, with an encoder that was to be compiled.

    With adapters vLLM compiles nothing on CPU: its mode becomes NONE.
    """
    steps = [
        start("main", qwen2_5_vl, **CUT, **TOWER, **COMPILED),
        ask("one", "main", ONE),
        ask("adapter", "main", ONE, adapter=language),
        ask("tower", "main", ONE, adapter=tower),
    ]
    found = run(folder / "adapters", steps, {})
    for name, answer in found.answers.items():
        assert answer.tokens == stock.answers[name].tokens, name
    why = found.eager_because["main"]
    assert why == "compilation mode 0 compiles no encoder"
    assert found.log.count(why) == 1
    assert found.counters["structures"] == 0


@pytest.mark.parametrize(
    ("adapters", "why"),
    [
        (ADAPTERS, None),
        (TOWER, "adapters replace its layers (enable_tower_connector_lora)"),
    ],
    ids=["text model", "tower"],
)
def test_adapters_where_vllm_compiles(
    qwen2_5_vl: Path, adapters: dict[str, Any], why: str | None
) -> None:
    """In the mode of a GPU: the encoder is eager for adapters of its own only."""
    mode = CompilationMode.VLLM_COMPILE
    with tower_context(
        qwen2_5_vl, compile_mm_encoder=True, mode=mode, **adapters
    ) as config:
        assert load_model(config).encoder_eager_because == why


def test_a_quantised_text_model_that_drafts(folder: Path, qwen2_5_vl: Path) -> None:
    """int8, and tokens drafted from the prompt (ngram); stock drafts none."""
    config = COMPRESSED_TENSORS | {"ignore": ["lm_head", "re:.*visual.*"]}
    checkpoint = write_quantised(qwen2_5_vl, folder / "quantised", config)
    ngram = {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 2,
            "prompt_lookup_max": 2,
        }
    }
    asked = [ask("one", "main", ONE), ask("two", "main", TWO), ask("text", "main")]
    steps = [start("main", checkpoint, **EAGER), *asked]
    stock = run(folder / "stock, quantised", steps, STOCK)
    steps = [start("main", checkpoint, **ngram, **COMPILED), *asked]
    ours = run(folder / "ours, quantised", steps, {})
    for name, answer in ours.answers.items():
        assert answer.tokens == stock.answers[name].tokens, name
    assert ours.eager_because["main"] is None
    assert ours.counters["recompiles"] == ours.counters["fallbacks"] == 0
