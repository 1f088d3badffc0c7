# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Settings from the environment: what is read, what is refused."""

from dataclasses import FrozenInstanceError, fields

import pytest

from vllm_mmc.settings import VARIABLES, Settings, variable

NAMES = [field.name for field in fields(Settings)]


def test_names_of_the_variables() -> None:
    assert set(VARIABLES) == {"VLLM_MMC_DISABLE", "VLLM_MMC_ALLOW_UNTESTED_VLLM"}


def test_all_is_off_by_default() -> None:
    others = {"VLLM_MMC": "1", "MMC_DISABLE": "1", "VLLM_DISABLE": "1"}
    assert not any(vars(Settings.from_environment(others)).values())
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize("name", NAMES)
def test_each_is_switched_by_its_own_variable(name: str) -> None:
    on = Settings.from_environment({variable(name): "1"})
    assert {n for n, value in vars(on).items() if value} == {name}
    assert Settings.from_environment({variable(name): "0"}) == Settings()


@pytest.mark.parametrize("text", ["yes", "true", "2", "", " 1"])
@pytest.mark.parametrize("name", NAMES)
def test_other_values_are_refused(name: str, text: str) -> None:
    message = f'^{variable(name)} must be "0" or "1", not "{text}"$'
    with pytest.raises(ValueError, match=message):
        Settings.from_environment({variable(name): text})


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MMC_DISABLE", "1")
    assert Settings.from_environment().disable
    monkeypatch.delenv("VLLM_MMC_DISABLE")
    assert not Settings.from_environment().disable


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().disable = True  # type: ignore[misc]
