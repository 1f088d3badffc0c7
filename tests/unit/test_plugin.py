# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`register()` in real vLLM processes: what it changes, and what it leaves alone."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vllm.model_executor.models import registry

from tests.unit.in_vllm import (
    BY_FILE,
    EXPECTED,
    KNOWN,
    InVllm,
    registry_changes,
    reported,
    under_both_names,
)
from vllm_mmc.catalog import EAGER
from vllm_mmc.plugin import register


def registry_changes_of_two_calls() -> dict[str, str]:
    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    before = dict(ModelRegistry.models)
    register()
    register()
    after = ModelRegistry.models
    assert before.keys() <= after.keys()
    return {
        name: f"{model.module_name}:{model.class_name}"
        for name, model in after.items()
        if before.get(name) != model
    }


def test_entry_point() -> None:
    (ours,) = [p for p in entry_points(group="vllm.general_plugins") if p.name == "mmc"]
    assert ours.load() is register


def test_plugin_changes_the_registry_as_the_catalogue_says(in_vllm: InVllm) -> None:
    assert in_vllm(registry_changes).value == EXPECTED


def test_without_survey_the_catalogue_alone_is_registered(in_vllm: InVllm) -> None:
    outcome = in_vllm(registry_changes, VLLM_MMC_SURVEY="0")
    assert outcome.value == under_both_names(BY_FILE)


def test_eager_architectures_stay_vllms_own() -> None:
    assert not EAGER.keys() & EXPECTED.keys()
    assert EAGER.keys() <= registry._VLLM_MODELS.keys()


def test_second_call_changes_nothing_more(in_vllm: InVllm) -> None:
    assert in_vllm(registry_changes_of_two_calls).value == EXPECTED


def test_imports_no_model_and_touches_no_device(in_vllm: InVllm) -> None:
    def scenario() -> dict[str, Any]:
        import sys

        import torch

        touched: list[str] = []
        torch.cuda._lazy_init = lambda: touched.append("cuda")
        before = set(sys.modules)
        from vllm_mmc.plugin import register

        register()
        register()
        return {
            "imported": sorted(sys.modules.keys() - before),
            "touched": touched or torch.cuda.is_initialized(),
        }

    found = in_vllm(scenario).value
    allowed = (
        *("vllm_mmc", "vllm_mmc.catalog", "vllm_mmc.compat"),
        *("vllm_mmc.metrics", "vllm_mmc.plugin", "vllm_mmc.settings"),
    )
    # The standard library is what prometheus_client brings.
    light = {"prometheus_client", *sys.stdlib_module_names}
    assert {
        m
        for m in found["imported"]
        if m.partition(".")[0] not in light and not m.startswith("vllm_mmc.compat.")
    } == set(allowed)
    assert not found["touched"]


def test_a_spawned_process_sees_the_registration(in_vllm: InVllm) -> None:
    def scenario() -> dict[str, str]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        expression = (
            "(__import__('vllm.plugins').plugins.load_general_plugins(),"
            " {name: f'{model.module_name}:{model.class_name}' for name, model in"
            " __import__('vllm').ModelRegistry.models.items()"
            " if model.module_name.startswith('vllm_mmc')})[1]"
        )
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(eval, expression).result()

    outcome = in_vllm(scenario)
    assert outcome.value == EXPECTED
    assert outcome.lines() == []


def test_inspection_finds_what_the_stock_class_supports(
    in_vllm: InVllm, tmp_path: Path
) -> None:
    def scenario() -> list[Any]:
        import dataclasses
        from types import SimpleNamespace

        from vllm import ModelRegistry
        from vllm.model_executor.models import registry
        from vllm.model_executor.models.registry import _ModelInfo

        from vllm_mmc.catalog import CATALOG
        from vllm_mmc.plugin import register

        known = [e for e in CATALOG if e.architecture in ModelRegistry.models]
        stock = {e: ModelRegistry.models[e.architecture] for e in known}
        register()
        config = SimpleNamespace(model_impl="auto", convert_type="none")
        pairs = []
        for index, entry in enumerate(known):
            if index == 1:  # one in a process of its own, as vLLM does; the rest here
                registry._run_in_subprocess = lambda function: function()
            expected = _ModelInfo.from_model_cls(stock[entry].load_model_cls())
            for name in (entry.architecture, entry.compiled_architecture):
                info, found = ModelRegistry.inspect_model_cls(name, config)
                assert found == name
                pairs.append((dataclasses.asdict(expected), dataclasses.asdict(info)))
        return pairs

    pairs = in_vllm(scenario, VLLM_CACHE_ROOT=str(tmp_path)).value
    # vLLM wrote these files: the answers came from no older cache.
    classes = {entry.model for entry in KNOWN}
    assert len(list((tmp_path / "modelinfos").glob("vllm_mmc-*"))) == len(classes)
    assert len(pairs) == 2 * len(KNOWN)
    for stock, ours in pairs:
        architecture = stock.pop("architecture")
        assert ours.pop("architecture") == f"Compiled{architecture}"
        assert ours == stock
        assert ours["supports_multimodal"]


def test_compile_cache_keys_of_other_models_stay(in_vllm: InVllm) -> None:
    def scenario() -> list[str]:
        from vllm.config.utils import hash_factors
        from vllm.envs import compile_factors
        from vllm.plugins import load_general_plugins

        before = hash_factors(compile_factors())
        load_general_plugins()
        return [before, hash_factors(compile_factors())]

    before, after = in_vllm(scenario).value
    assert before == after


def test_counters_are_metrics(in_vllm: InVllm) -> None:
    assert "vllm_mmc:encoder_graphs_total" in in_vllm(reported).value
