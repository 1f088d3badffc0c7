# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What each room offers by its name."""

import importlib

import pytest

ROOMS = ("attention", "cache", "compilation", "encoder", "layers", "sizes")


@pytest.mark.parametrize("room", ROOMS)
def test_names_of_a_room_are_those_of_its_modules(room: str) -> None:
    package = importlib.import_module(f"vllm_mmc.{room}")
    assert package.__all__
    for name in package.__all__:
        found = getattr(package, name)
        module = importlib.import_module(f"vllm_mmc.{room}.{package._NAMES[name]}")
        assert found is getattr(module, name)
        assert not hasattr(found, "__path__"), f"{name} is a module, too"


def test_a_name_that_a_room_has_not() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from vllm_mmc.encoder import nothing")
