# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Settings from the environment: what is read, what is refused."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

from vllm_mmc.settings import VARIABLES, Settings, variable

SWITCHES = {f.name: f.default for f in fields(Settings) if f.metadata["process"]}
# Name, text in the environment, the same in --additional-config, value.
GOOD = [
    ("on_error", "raise", "raise", "raise"),
    ("on_error", "eager", "eager", "eager"),
    ("parity_check", "auto", "auto", "auto"),
    ("parity_check", "off", "off", "off"),
    ("parity_check", "first", "first", "first"),
    ("parity_check", "all", "all", "all"),
    ("measure", "off", "off", "off"),
    ("measure", "warmup", "warmup", "warmup"),
    ("cpu_attention", "sdpa", "sdpa", "sdpa"),
    ("compile_sizes", "[64, 16, 64]", [64, 16, 64], (16, 64)),
    ("compile_sizes", "[]", [], ()),
    ("compile_ranges", "[[9, 20], [1, 8]]", [[9, 20], [1, 8]], ((1, 8), (9, 20))),
    ("max_graphs", "3", 3, 3),
    ("log_shapes_interval", "2.5", 2.5, 2.5),
    ("log_shapes_interval", "-1", -1, -1.0),
]
BAD: list[tuple[str, Any, str]] = [
    ("on_error", "ignore", '"eager" or "raise"'),
    ("on_error", True, '"eager" or "raise"'),
    ("measure", "on", '"off" or "warmup"'),
    ("cpu_attention", "fast", '"auto" or "sdpa" or "amx" or "avx512_bf16" or "avx512"'),
    ("parity_check", "on", '"auto" or "off" or "first" or "all"'),
    *(
        ("max_graphs", bad, "a whole number above 0")
        for bad in ("many", "", "0", 0, -1, 1.5, True, None, [8])
    ),
    *(
        ("compile_sizes", bad, "a list of whole numbers above 0")
        for bad in ("16", "[16", [0], [-4], [1.5], [True], ["16"], {"16": 1}, 16)
    ),
    *(
        ("compile_ranges", bad, r"a list of \[first, last\] that do not overlap")
        for bad in ("[1, 8]", [[8, 1]], [[0, 8]], [[1, 8], [8, 9]], [[1]], [[1, "8"]])
    ),
    ("log_shapes_interval", "soon", "a number of seconds"),
    ("log_shapes_interval", None, "a number of seconds"),
]


def test_names_of_the_variables() -> None:
    assert set(VARIABLES) == {
        "VLLM_MMC_DISABLE",
        "VLLM_MMC_ALLOW_UNTESTED_VLLM",
        "VLLM_MMC_SURVEY",
        "VLLM_MMC_SURVEY_PLUGINS",
        "VLLM_MMC_FINITE_CHECK",
        "VLLM_MMC_ON_ERROR",
        "VLLM_MMC_PARITY_CHECK",
        "VLLM_MMC_COMPILE_SIZES",
        "VLLM_MMC_COMPILE_RANGES",
        "VLLM_MMC_MAX_GRAPHS",
        "VLLM_MMC_COMPILE_SECONDS",
        "VLLM_MMC_MEASURE",
        "VLLM_MMC_CPU_ATTENTION",
        "VLLM_MMC_LOG_SHAPES_INTERVAL",
    }


def test_defaults() -> None:
    others = {"VLLM_MMC": "1", "MMC_DISABLE": "1", "VLLM_DISABLE": "1"}
    assert Settings.resolve(None, others) == Settings.resolve({}, {}) == Settings()
    assert Settings.resolve({"another_plugin": {"on_error": 3}}, {}) == Settings()
    assert SWITCHES == {
        "disable": False,
        "allow_untested_vllm": False,
        "survey": True,
        "survey_plugins": True,
        "finite_check": True,
    }
    assert (Settings().on_error, Settings().parity_check) == ("eager", "auto")
    assert (Settings().max_graphs, Settings().measure) == (8, "off")


@pytest.mark.parametrize("name", SWITCHES)
def test_each_is_switched_by_its_own_variable(name: str) -> None:
    for text in ("0", "1"):
        found = Settings.resolve(None, {variable(name): text})
        switched: dict[str, Any] = {name: text == "1"}
        assert found == replace(Settings(), **switched)


@pytest.mark.parametrize("text", ["yes", "true", "2", "", " 1"])
@pytest.mark.parametrize("name", SWITCHES)
def test_other_values_are_refused(name: str, text: str) -> None:
    message = f'^{variable(name)} must be "0" or "1", not "{text}"$'
    with pytest.raises(ValueError, match=message):
        Settings.resolve(None, {variable(name): text})


@pytest.mark.parametrize(("name", "text", "plain", "value"), GOOD)
def test_both_places(name: str, text: str, plain: Any, value: Any) -> None:
    other = {variable(name): "not read"}
    for settings in (
        Settings.resolve(None, {variable(name): text}),
        Settings.resolve({"vllm_mmc": {name: plain}}, other),
    ):
        assert getattr(settings, name) == value


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_what_is_refused(name: str, value: Any, allowed: str) -> None:
    message = rf"^additional_config\.vllm_mmc\.{name} must be {allowed}.*, not "
    with pytest.raises(ValueError, match=message):
        Settings.resolve({"vllm_mmc": {name: value}}, {})


@pytest.mark.parametrize("name", [*SWITCHES, "on_errors", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"vllm_mmc\.{name} is unknown; there are "):
        Settings.resolve({"vllm_mmc": {name: "1"}}, {})


def test_our_part_is_an_object() -> None:
    with pytest.raises(ValueError, match="must be a JSON object"):
        Settings.resolve({"vllm_mmc": [1]}, {})


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MMC_DISABLE", "1")
    assert Settings.resolve().disable
    monkeypatch.delenv("VLLM_MMC_DISABLE")
    assert not Settings.resolve().disable


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().disable = True  # type: ignore[misc]
