# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What a survey sees of small modules, without compiling them."""

import functools

import torch
import torch.nn as nn
from torch import Tensor
from transformers.utils import output_capturing

from vllm_mmc.compat import output_hooks
from vllm_mmc.encoder.survey import Survey, survey

WIDTH = 8
ACTIVATION = nn.GELU()  # vLLM, too, keeps one of each kind


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.activation = ACTIVATION

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class Projector(Layer):
    """Beside the layers."""


class ReadingProjector(Layer):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(x)[: lengths.tolist()[0]]


class Encoder(nn.Module):
    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.projector = projector

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.projector(x[1:], *others)


def surveyed(encoder: nn.Module, *others: Tensor) -> Survey:
    root = nn.ModuleDict({"tower": encoder})
    inputs = [torch.randn(rows, WIDTH) for rows in (5, 3, 9)]
    return survey(root, [functools.partial(encoder, x, *others) for x in inputs])


def test_a_module_beside_the_blocks_may_share_an_activation_with_them() -> None:
    found = surveyed(Encoder(Projector()))
    paths = {region.spec.name: region.paths for region in found.regions}
    assert paths == {
        "Layer": tuple(f"tower.layers.{i}" for i in range(3)),
        "Projector": ("tower.projector",),
    }


def test_what_starts_inside_a_storage_is_copied() -> None:
    """Its offset would be in the graph's guards."""
    found = surveyed(Encoder(Projector()))
    contiguous = {region.spec.name: region.spec.contiguous for region in found.regions}
    assert contiguous == {"Layer": (), "Projector": ("x",)}


def test_what_reads_values_beside_the_blocks_stays_eager() -> None:
    found = surveyed(Encoder(ReadingProjector()), torch.tensor([2]))
    assert [region.spec.name for region in found.regions] == ["Layer"]
    assert found.eager == {
        "ReadingProjector": "forward depends on the values of a tensor"
    }


def test_what_transformers_collects_inside_stays_eager() -> None:
    """Its hooks are not traced."""
    encoder = Encoder(Projector())
    for layer in encoder.layers:
        output_capturing.install_output_capuring_hook(layer.linear, "inner", 0)
    linear = encoder.layers[0].linear
    with output_hooks.taken_off(encoder.layers[0]):
        assert not linear._forward_hooks
    assert linear._forward_hooks
    assert "Layer" in [region.spec.name for region in surveyed(encoder).regions]
    collector = output_capturing._active_collector
    token = collector.set({"inner": []})
    try:
        found = surveyed(encoder)
    finally:
        collector.reset(token)
    assert "Layer" in found.eager
    assert "Layer" not in [region.spec.name for region in found.regions]
