# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`register()` where it changes little or nothing: switched off, or another vLLM."""

from typing import Any

import pytest

from tests.unit.in_vllm import (
    BY_FILE,
    EXPECTED,
    KNOWN,
    InVllm,
    by_file,
    registry_changes,
    reported,
    surveyed_with,
    under_both_names,
)


def test_off_there_are_no_metrics(in_vllm: InVllm) -> None:
    assert in_vllm(reported, VLLM_MMC_DISABLE="1").value == []


@pytest.mark.parametrize("env", [{"VLLM_MMC_DISABLE": "1"}, {"VLLM_PLUGINS": "other"}])
def test_off(in_vllm: InVllm, env: dict[str, str]) -> None:
    outcome = in_vllm(registry_changes, **env)
    assert outcome.value == {}
    assert outcome.lines() == []


@pytest.mark.parametrize("value", ["0", "1", "yes"])
def test_vllm_knows_our_variables(in_vllm: InVllm, value: str) -> None:
    def scenario() -> str:
        import os

        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform

        EngineArgs(model=".")
        current_platform.validate_environ(hard_fail=True)
        os.environ["VLLM_MMC_TYPO"] = "1"
        try:
            current_platform.validate_environ(hard_fail=True)
        except ValueError as error:
            return str(error)
        return ""

    env = {"VLLM_MMC_DISABLE": value, "VLLM_MMC_ALLOW_UNTESTED_VLLM": value}
    assert "VLLM_MMC_TYPO" in in_vllm(scenario, **env).value


def test_a_bad_value_is_said_once_and_leaves_vllm_stock(in_vllm: InVllm) -> None:
    outcome = in_vllm(registry_changes, VLLM_MMC_DISABLE="yes")
    assert outcome.value == {}
    (line,) = outcome.lines()
    assert 'VLLM_MMC_DISABLE must be "0" or "1", not "yes"' in line


def registry_changes_under_another_vllm() -> dict[str, str]:
    import vllm
    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    vllm.__version__ = "0.99.0"
    before = dict(ModelRegistry.models)
    register()
    register()
    return {
        name: f"{model.module_name}:{model.class_name}"
        for name, model in ModelRegistry.models.items()
        if before.get(name) != model
    }


def test_an_untested_vllm_is_left_stock_and_told_why(in_vllm: InVllm) -> None:
    outcome = in_vllm(registry_changes_under_another_vllm)
    assert outcome.value == {}
    (line,) = outcome.lines()
    assert "vLLM 0.99.0 is outside the tested range, 0.31 to below 0.34" in line
    assert "set VLLM_MMC_ALLOW_UNTESTED_VLLM=1" in line


def test_an_untested_vllm_can_be_tried(in_vllm: InVllm) -> None:
    env = {"VLLM_MMC_ALLOW_UNTESTED_VLLM": "1"}
    outcome = in_vllm(registry_changes_under_another_vllm, **env)
    expected = by_file("0.99.0") | surveyed_with("0.99.0")
    assert outcome.value == under_both_names(expected)
    assert outcome.lines() == []


def test_a_vllm_without_its_table_of_models(in_vllm: InVllm) -> None:
    """Only what has a file here, which needs no table to find the stock class."""

    def scenario() -> dict[str, str]:
        from vllm import ModelRegistry
        from vllm.model_executor.models import registry
        from vllm.plugins import load_general_plugins

        del registry._VLLM_MODELS
        before = dict(ModelRegistry.models)
        load_general_plugins()
        return {
            name: f"{model.module_name}:{model.class_name}"
            for name, model in ModelRegistry.models.items()
            if before.get(name) != model
        }

    with_file = {e.architecture for e in KNOWN if e.mixin is None}
    expected = {name: BY_FILE[name] for name in with_file}
    outcome = in_vllm(scenario)
    assert outcome.value == under_both_names(expected)
    assert "registry._VLLM_MODELS" in outcome.output


def test_a_vllm_without_an_architecture_of_the_catalogue(in_vllm: InVllm) -> None:
    def scenario() -> list[str]:
        from vllm import ModelRegistry
        from vllm.model_executor.models import registry

        from vllm_mmc.plugin import register

        for table in (registry._VLLM_MODELS, ModelRegistry.models):
            table.pop("ClefOmniForJointSchema", None)
        before = dict(ModelRegistry.models)
        register()
        return [n for n, m in ModelRegistry.models.items() if before.get(n) != m]

    gone = {"ClefOmniForJointSchema", "CompiledClefOmniForJointSchema"}
    assert set(in_vllm(scenario).value) == EXPECTED.keys() - gone


def test_a_failure_half_way_leaves_vllm_stock(in_vllm: InVllm) -> None:
    def scenario() -> bool:
        from vllm import ModelRegistry
        from vllm.plugins import load_general_plugins

        works = type(ModelRegistry).register_model
        calls = []

        def fails_the_second_time(self: Any, *args: Any) -> None:
            calls.append(args)
            if len(calls) == 2:
                raise RuntimeError("no room")
            works(self, *args)

        type(ModelRegistry).register_model = fails_the_second_time
        before = list(ModelRegistry.models.items())
        load_general_plugins()
        assert len(calls) == 2
        return before == list(ModelRegistry.models.items())

    outcome = in_vllm(scenario)
    assert outcome.value is True
    (line,) = outcome.lines()
    assert line.endswith("all models are vLLM's own: RuntimeError: no room")
