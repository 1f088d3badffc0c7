# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The catalogue tells the truth about vLLM's models and ours."""

import importlib
from collections import Counter
from typing import Any

import pytest

from vllm_mmc.catalog import CATALOG, REWRITES, CatalogEntry, surveyed
from vllm_mmc.models import auto

every_entry = pytest.mark.parametrize("entry", CATALOG, ids=lambda e: e.architecture)


def our_class(entry: CatalogEntry) -> Any:
    module, _, name = entry.model.partition(":")
    return getattr(importlib.import_module(module), name)


def test_no_name_twice() -> None:
    names = Counter(e.architecture for e in CATALOG)
    # One class may serve two architectures.
    names.update({model.partition(":")[2] for model in {e.model for e in CATALOG}})
    assert max(names.values()) == 1


@every_entry
def test_our_class_is_the_stock_class_under_a_name_of_its_own(
    entry: CatalogEntry,
) -> None:
    from vllm.model_executor.models.registry import _VLLM_MODELS

    module, name = _VLLM_MODELS[entry.architecture]
    stock = importlib.import_module(f"vllm.model_executor.models.{module}")
    ours = our_class(entry)
    assert issubclass(ours, getattr(stock, name))
    assert ours.__name__ == entry.compiled_architecture == f"Compiled{name}"
    assert entry.compiled_architecture not in _VLLM_MODELS


@every_entry
def test_regions_are_what_the_model_compiles(entry: CatalogEntry) -> None:
    from vllm_mmc.compilation.decorators import _own_spec

    compiled = [c for c in our_class(entry).encoder_regions.values() if _own_spec(c)]
    assert len(compiled) == len(set(entry.regions)) > 0


@every_entry
def test_there_is_a_checkpoint_of_each_family(entry: CatalogEntry) -> None:
    from mmc_testing.checkpoints import FAMILIES

    assert entry.family in FAMILIES


@every_entry
def test_the_row_says_what_stock_compiles(entry: CatalogEntry) -> None:
    assert entry.stock


@pytest.mark.parametrize("architecture", REWRITES)
def test_rewrites_are_subclasses_of_stock_classes(architecture: str) -> None:
    assert architecture in surveyed([architecture], [architecture], "1")
    rewrites = getattr(auto, f"Compiled{architecture}").encoder_rewrites
    assert rewrites
    for stock, rewrite in rewrites.items():
        assert issubclass(rewrite, stock)
        assert rewrite.__name__ == f"Compiled{stock.__name__}"
