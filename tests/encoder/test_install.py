# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The walk that makes a stock encoder ours: what changes, what stays, what it says."""

import copy
import importlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn as nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import mm_encoder_attention as stock
from vllm.model_executor.models.utils import StageMissingLayer

from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.encoder.install import (
    CompiledEncoder,
    EncoderPlan,
    InstallReport,
    install,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).relu()


@support_torch_compile(dynamic_arg_dims={"x": 0}, is_encoder=True)
class CompiledBlock(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).relu()


class DoubledBlock(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Variant(Block):
    pass


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[VllmConfig]:
    config = VllmConfig(additional_config={"vllm_mmc": {"on_error": "raise"}})
    with set_current_vllm_config(config):
        yield config


def test_classes_change_and_nothing_else(vllm_config: VllmConfig) -> None:
    root = nn.Sequential(Block(), nn.ModuleList([Block()]), Variant())
    parameters = dict(root.named_parameters())
    report = InstallReport()
    plan = EncoderPlan(classes={Block: CompiledBlock})
    assert install(root, plan, vllm_config, report=report) is root
    assert all(p is parameters[n] for n, p in root.named_parameters())
    types = [type(root[0]), type(root[1][0]), type(root[2])]
    assert types == [CompiledBlock, CompiledBlock, Variant]
    assert list(report.lines()) == ["Block -> CompiledBlock x 2"]
    x = torch.randn(5, 8)
    with torch.inference_mode(), counters.expect(structures=1, followers=1, graphs=1):
        for block in (root[0], root[1][0]):
            expected = Block.forward(block, x)
            torch.testing.assert_close(block(x), expected)


def test_the_root_itself_is_replaced(vllm_config: VllmConfig) -> None:
    root = Block()
    calls: list[nn.Module] = []
    root.register_forward_hook(lambda module, *_: calls.append(module))
    ours = install(root, EncoderPlan(classes={Block: DoubledBlock}), vllm_config)
    assert type(root) is Block and type(ours) is DoubledBlock
    assert ours.proj is root.proj
    x = torch.randn(3, 8)
    torch.testing.assert_close(ours(x), 2 * root(x))
    assert calls == [ours, root]


def test_a_module_with_two_parents_stays_one_module(vllm_config: VllmConfig) -> None:
    block = Block()
    root = nn.ModuleDict({"a": nn.Sequential(block), "b": nn.Sequential(block)})
    install(root, EncoderPlan(classes={Block: DoubledBlock}), vllm_config)
    assert root["a"][0] is root["b"][0]
    assert type(root["a"][0]) is DoubledBlock


def test_a_second_walk_changes_nothing(vllm_config: VllmConfig) -> None:
    root = nn.Sequential(Block(), stock.MMEncoderAttention(2, 8))
    plan = EncoderPlan(classes={Block: DoubledBlock})
    install(root, plan, vllm_config)
    before = list(root.modules())
    report = InstallReport()
    install(root, plan, vllm_config, report=report)
    assert all(a is b for a, b in zip(before, root.modules(), strict=True))
    assert not report.changes


def test_attention_below_any_module_is_ours(vllm_config: VllmConfig) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = stock.MMEncoderAttention(2, 8)

    root = nn.Sequential(Holder())
    report = InstallReport()
    install(root, EncoderPlan(), vllm_config, report=report)
    attention = root[0].attn
    assert type(attention) is MMEncoderAttention
    assert attention._forward_method.__self__ is attention
    assert dict(report.changes) == {"MMEncoderAttention -> MMEncoderAttention": 1}


def test_a_tower_that_is_missing_here_is_passed_over(vllm_config: VllmConfig) -> None:
    """On the later ranks of a pipeline, and where all limits are 0, vLLM puts an object
    without children in the place of a tower. Attributes of the tower can be read."""
    tower = nn.Sequential(Block(), stock.MMEncoderAttention(2, 8))
    tower.config = None
    missing = StageMissingLayer("vision_tower", tower)
    root = nn.ModuleDict({"visual": missing})
    report = InstallReport()
    plan = EncoderPlan(
        towers={nn.Sequential: CompiledEncoder}, classes={Block: CompiledBlock}
    )
    assert install(root, plan, vllm_config, report=report) is root
    assert root["visual"] is missing
    assert install(missing, plan, vllm_config, report=report) is missing
    assert not report.changes
    assert type(tower[0]) is Block and type(tower[1]) is stock.MMEncoderAttention


def test_no_encoder_is_taken_for_a_language_model() -> None:
    """From 0.33 on, vLLM takes a child that can embed tokens for the language model."""
    for entry in CATALOG:
        importlib.import_module((entry.mixin or entry.model).partition(":")[0])
    encoders = [CompiledEncoder]
    for encoder in encoders:
        encoders += encoder.__subclasses__()
    assert len(encoders) > 10
    assert not [e for e in encoders if hasattr(e, "embed_input_ids")]


def test_a_copy_of_what_was_installed_is_a_copy(vllm_config: VllmConfig) -> None:
    root = nn.Sequential(Block())
    install(root, EncoderPlan(classes={Block: CompiledBlock}), vllm_config)
    twin = copy.deepcopy(root)
    assert type(twin[0]) is CompiledBlock
    assert twin[0].proj.weight is not root[0].proj.weight


@pytest.mark.parametrize(
    ("plan", "surveyed"),
    [
        (EncoderPlan(), True),
        (EncoderPlan(classes={Block: DoubledBlock}), True),
        (EncoderPlan(classes={Block: CompiledBlock}), False),
        (EncoderPlan(classes={Block: CompiledBlock}, surveyed=("visual",)), True),
        (EncoderPlan(classes={Block: CompiledBlock}, surveyed=("audio",)), False),
    ],
)
def test_what_is_surveyed(plan: EncoderPlan, surveyed: bool) -> None:
    assert plan.is_surveyed("visual") is surveyed
