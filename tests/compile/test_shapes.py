# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ranges and sizes of the encoder's own, and the warm-up that covers them."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

from mmc_testing.engine import vllm_compile_on_cpu
from vllm_mmc.compilation.counters import counters
from vllm_mmc.compilation.decorators import support_torch_compile
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.settings import Settings
from vllm_mmc.sizes.buckets import TokenBuckets, TokenRange, encoder_forward

HIDDEN, STEP, LIMIT = 8, 4, 256
SETTINGS = Settings(compile_sizes=(64,), compile_ranges=((4, 16), (100, 128)))


class Region(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN) / HIDDEN)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y = (x @ self.weight).tanh() * self.scale
        return y + x.shape[0] / 100 + lengths.sum()


class Merger(Region):
    pass


class CompiledRegion(Region):
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y = (x @ self.weight).tanh() * self.scale
        return y + x.shape[0] / 100 + lengths.sum()


CompiledMerger = support_torch_compile(dynamic_arg_dims={"x": 0, "lengths": 0})(
    type("CompiledMerger", (Merger,), {"forward": CompiledRegion.forward})
)
support_torch_compile(dynamic_arg_dims={"x": 0, "lengths": 0})(CompiledRegion)


class Encoder(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Region(scale), Region(scale)])
        self.merger = Merger(scale)

    @encoder_forward
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, lengths)
        return self.merger(x.view(-1, STEP, HIDDEN)[:, 0], lengths)


MakeEncoder = Callable[..., Encoder]


@pytest.fixture(params=[2, 3], ids=["mode 2", "mode 3"])
def encoder(request: pytest.FixtureRequest) -> Iterator[MakeEncoder]:
    """Makes an encoder that is adopted under settings of ours or of vLLM's."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())

        def make(
            scale: float, limit: int | None, compilation: Any = None, **settings: Any
        ) -> Encoder:
            config = VllmConfig(
                compilation_config=CompilationConfig(**(compilation or {})),
                additional_config={"vllm_mmc": settings | {"on_error": "raise"}},
            )
            if request.param == 3:
                stack.enter_context(vllm_compile_on_cpu(config))
            with set_current_vllm_config(config):
                made = Encoder(scale)
                regions = {Region: CompiledRegion, Merger: CompiledMerger}
                install(made, EncoderPlan(classes=regions), config)
                resolved = Settings.resolve(config.additional_config)
                made.encoder_shapes = TokenBuckets(resolved, limit, STEP)
            return made

        yield make


def check(encoder: Encoder, tokens: int, items: int = 3) -> None:
    x, lengths = torch.randn(tokens, HIDDEN), torch.randn(items)
    expected = x
    for block in encoder.blocks:
        expected = Region.forward(block, expected, lengths)
    expected = Region.forward(
        encoder.merger, expected.view(-1, STEP, HIDDEN)[:, 0], lengths
    )
    torch.testing.assert_close(encoder(x, lengths), expected)


def test_bounds() -> None:
    shapes = TokenBuckets(SETTINGS, LIMIT, STEP)
    expected = {4: (4, 16), 16: (4, 16), 20: (1, 256), 64: (64, 64), 256: (1, 256)}
    for tokens, span in {**expected, 128: (100, 128), 260: None}.items():
        assert shapes.bounds(tokens) == TokenRange(tokens, span)
    assert TokenBuckets(Settings()).bounds(4) == TokenRange(4, None)


@pytest.mark.parametrize(
    ("settings", "limit", "sizes"),
    [
        (Settings(), LIMIT, [4, 8]),
        (Settings(), None, [4, 8]),
        (SETTINGS, LIMIT, [4, 8, 20, 64, 104]),
        (SETTINGS, None, [4, 8, 20, 64, 104]),
        (Settings(compile_ranges=((1, 256),)), LIMIT, [4, 8]),
        (Settings(compile_ranges=((1, 128), (129, 256))), LIMIT, [4, 8, 136]),
        (Settings(compile_ranges=((1, 128), (129, 256))), None, [4, 8, 136, 260]),
        (Settings(compile_sizes=(4, 8)), LIMIT, [4, 8, 12]),
        (Settings(compile_ranges=((1, 7),), compile_sizes=(8,)), LIMIT, [4, 8, 12]),
    ],
)
def test_warmup_sizes_cover_every_graph(
    settings: Settings, limit: int | None, sizes: list[int]
) -> None:
    shapes = TokenBuckets(settings, limit, STEP)
    assert shapes.warmup_sizes() == sizes
    reachable = range(STEP, (limit or 1024) + 1, STEP)
    assert {shapes.bounds(n).range for n in sizes} == {
        shapes.bounds(n).range for n in reachable
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Settings(compile_sizes=(512,)),
            "compile_sizes has 512, .* multiples of 4 packed tokens up to 256",
        ),
        (Settings(compile_sizes=(6,)), "compile_sizes has 6"),
        (Settings(compile_ranges=((5, 7),)), r"compile_ranges has \[5, 7\]"),
        (Settings(compile_ranges=((4, 257),)), r"compile_ranges has \[4, 257\]"),
    ],
)
def test_what_the_encoder_never_sees_is_refused(
    settings: Settings, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBuckets(settings, LIMIT, STEP)


def test_no_compilation_after_warm_up(encoder: MakeEncoder) -> None:
    made = encoder(2.0, LIMIT, compile_sizes=[64], compile_ranges=[[4, 16], [100, 128]])
    # Two structures for two ranges, one size and the rest; and the merger's single row
    # at the smallest size lies otherwise in memory than its rows at all others.
    with counters.expect(graphs=9, recompiles=1, structures=2, followers=1):
        for tokens in made.encoder_shapes.warmup_sizes():
            check(made, tokens)
    sizes = [STEP * random.randint(1, LIMIT // STEP) for _ in range(200)]
    with counters.expect(graphs=0, artifact_loads=0):
        for tokens in (*sizes, 64, 100, 128, 4, 16, LIMIT):
            check(made, tokens, items=random.randint(2, 7))


def test_a_size_that_another_dimension_has_by_chance(encoder: MakeEncoder) -> None:
    """Only what has the packed size because it is packed may become a constant."""
    made = encoder(3.0, LIMIT, compile_sizes=[8])
    check(made, 8, items=8)
    check(made, 8, items=5)
    check(made, 12, items=8)


def test_beyond_the_limit_another_graph_is_right(encoder: MakeEncoder) -> None:
    made = encoder(5.0, LIMIT)
    with counters.expect(graphs=4):
        for tokens in (8, LIMIT, LIMIT + 4, 4 * LIMIT):
            check(made, tokens)


def test_the_decoders_sizes_do_not_reach_a_region(encoder: MakeEncoder) -> None:
    made = encoder(7.0, None, {"compile_sizes": [8, 16]})
    with counters.expect(graphs=2):
        for tokens in (8, 16, 24):
            check(made, tokens)
