# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Towers that will be replaced, and only those, are built on the meta device."""

import contextlib

import pytest
import torch
import torch.nn as nn

from vllm_mmc.encoder.on_meta import BuildOnMeta


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("angles", torch.arange(4) * 0.5)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.scale = nn.Parameter(torch.ones(4))
        nn.init.normal_(self.scale)


class OtherTower(Tower):
    pass


class Model(nn.Module):
    """Makes a projector between the tower and its registration, as MiniCPM-o does."""

    def __init__(self, tower: type[nn.Module]) -> None:
        super().__init__()
        made = tower()
        self.projector = Layer()
        self.tower = made


def devices(module: nn.Module) -> set[str]:
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.device.type for tensor in tensors}


@pytest.mark.parametrize("device", [None, "cpu"])
def test_the_tower_is_on_meta_and_the_projector_is_not(device: str | None) -> None:
    around = torch.device(device) if device else contextlib.nullcontext()
    with around, BuildOnMeta([Tower]):
        model = Model(Tower)
    assert devices(model.tower) == {"meta"}
    assert devices(model.projector) == {"cpu"}
    assert torch.equal(model.projector.angles, torch.tensor([0.0, 0.5, 1.0, 1.5]))


def test_a_subclass_and_what_is_built_afterwards_are_real() -> None:
    with BuildOnMeta([Tower]):
        assert devices(OtherTower()) == {"cpu"}
    assert devices(Tower()) == {"cpu"}


def test_random_numbers_of_the_rest_do_not_change() -> None:
    torch.manual_seed(7)
    expected = Layer().linear.weight
    torch.manual_seed(7)
    with BuildOnMeta([Tower]):
        model = Model(Tower)
    assert torch.equal(model.projector.linear.weight, expected)


def test_an_error_of_the_constructor_leaves_no_mode() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.ones(1)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), BuildOnMeta([Broken]):
        Broken()
    assert torch.ones(1).device.type == "cpu"
