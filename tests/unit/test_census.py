# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Every multimodal architecture of the installed vLLM is accounted for.

That docs/architectures.md is up to date is in test_docs.py.
"""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from vllm.model_executor.models import registry
from vllm.model_executor.models.interfaces import supports_multimodal
from vllm.platforms import current_platform

from mmc_testing.census import ADDS, CENSUS, DRAFT_MODELS, LACKS, NO_TOWER, REMARKS
from mmc_testing.release import RELEASE
from tests.encoder.towers import CANNOT, TOWERS
from vllm_mmc.catalog import CATALOG, EAGER, OUTSIDE_THE_MULTIMODAL_TABLE, surveyed

PAGE = Path(__file__).parents[2] / "docs/architectures.md"
SURVEYED = surveyed(registry._MULTIMODAL_MODELS, registry._VLLM_MODELS, "1")
BY_FILE = {entry.architecture for entry in CATALOG}
OF_THIS_RELEASE = {*CENSUS, *ADDS.get(RELEASE, ())} - LACKS.get(RELEASE, set())

# Architecture -> what the error says where its class cannot be imported.
CANNOT_IMPORT = {
    "CohereAsrForConditionalGeneration": "torchaudio",
    "Dots3NoteForCausalLM": "flash_attn",
    "Dots3NoteMTPModel": "flash_attn",
    "FunASRForConditionalGeneration": "torchaudio",
    "MiDashengLMModel": "torchaudio",
    "Terratorch": "terratorch",
}
# vLLM's class for CPU raises NotImplementedError and supports nothing.
STUBS_ON_CPU = {"DeepseekV4ForConditionalGeneration"}


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a title of the page."""
    _, section = PAGE.read_text().split(f"\n## {title}\n")
    lines = re.findall(r"^\| `.*$", section.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def names(title: str) -> list[str]:
    return [row[0].strip("`") for row in rows(title)]


def test_every_architecture_of_this_vllm_is_accounted_for() -> None:
    known = registry._VLLM_MODELS.keys()
    assert known & (BY_FILE | set(SURVEYED) | set(EAGER)) == OF_THIS_RELEASE
    assert registry._MULTIMODAL_MODELS.keys() <= OF_THIS_RELEASE


def test_what_other_releases_have_and_lack() -> None:
    added = [name for release in ADDS.values() for name in release]
    lacked = [name for release in LACKS.values() for name in release]
    assert not {*added} & {*CENSUS} and {*lacked} <= {*CENSUS}
    towers = {
        t for release in ADDS.values() for found in release.values() for t in found
    }
    assert towers <= {*TOWERS, *CANNOT}
    assert {*OUTSIDE_THE_MULTIMODAL_TABLE} <= {*CENSUS, *added}


def test_draft_models_are_named_and_not_registered() -> None:
    assert set(DRAFT_MODELS) <= set(registry._SPECULATIVE_DECODING_MODELS)
    assert not set(DRAFT_MODELS) & set(CENSUS)


@pytest.mark.slow
def test_the_census_has_exactly_the_classes_that_support_multimodal_input() -> None:
    """A new vLLM fails here with the architectures that are missing."""
    multimodal, failed = set(), {}
    for name, (module, cls) in registry._VLLM_MODELS.items():
        if not module.startswith("vllm."):
            module = f"vllm.model_executor.models.{module}"
        try:
            model = getattr(importlib.import_module(module), cls)
        except ImportError as error:
            failed[name] = str(error)
            continue
        if supports_multimodal(model):
            multimodal.add(name)
    unknown = {
        name: error
        for name, error in failed.items()
        if CANNOT_IMPORT.get(name, "not listed") not in error
    }
    assert not unknown
    stubs = STUBS_ON_CPU if current_platform.is_cpu() else set()
    drafts = registry._SPECULATIVE_DECODING_MODELS.keys() & multimodal
    assert {*DRAFT_MODELS} <= drafts
    assert multimodal - drafts == OF_THIS_RELEASE - failed.keys() - stubs


def test_tower_names_exist_and_each_tower_stands_for_an_architecture() -> None:
    assert {t for towers in CENSUS.values() for t in towers} == {*TOWERS, *CANNOT}
    assert not TOWERS.keys() & CANNOT.keys()


def test_where_there_is_no_tower_the_reason_is_given() -> None:
    without = {name for name, towers in CENSUS.items() if not towers}
    assert without == {*NO_TOWER, *(without & EAGER.keys())}
    assert set(REMARKS) <= set(CENSUS)


@pytest.mark.pages
def test_the_page_has_one_line_for_each_architecture() -> None:
    by_file = names("Compiled by a file of this package")
    by_survey = names("Compiled by survey")
    eager = names("Stays eager")
    cannot = names("Cannot be tested here")
    assert set(by_file) == BY_FILE
    assert set(by_survey) | set(cannot) == set(SURVEYED)
    assert set(eager) == set(EAGER)
    listed = Counter([*by_file, *by_survey, *eager, *cannot])
    assert listed == Counter(dict.fromkeys(CENSUS, 1))
    totals = re.findall(r"^\|.* (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    counted = [len(by_file), len(by_survey), len(eager), len(cannot), len(CENSUS)]
    assert list(map(int, totals)) == counted
    assert len(by_file) + len(by_survey) >= 120


def test_the_page_says_what_was_not_tested() -> None:
    for name, _, towers, _, remark in rows("Compiled by survey"):
        wanted = CENSUS[name.strip("`")]
        tested = [tower for tower in wanted if tower in TOWERS]
        assert towers == (", ".join(tested) or "none")
        for tower in set(wanted) - set(tested):
            assert CANNOT[tower].rstrip(".") in remark
        assert tested or remark
    for name, reason in rows("Cannot be tested here"):
        for tower in CENSUS[name.strip("`")]:
            assert CANNOT[tower].rstrip(".") in reason
