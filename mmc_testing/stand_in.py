# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A plugin of pytest, for vLLM's own tests: what they import from vLLM is ours.

tools/vllm_tests.py sets `VLLM_MMC_STAND_IN` to a name of `STAND_INS`, and
`VLLM_MMC_CHECKPOINT` to a family whose tiny checkpoint takes the place of a published
one. In any case the package is registered, as in every process of vLLM.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def attention() -> None:
    """Our `MMEncoderAttention`."""
    import vllm.model_executor.layers.attention as package
    from vllm.model_executor.layers.attention import mm_encoder_attention

    from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention

    package.MMEncoderAttention = MMEncoderAttention
    mm_encoder_attention.MMEncoderAttention = MMEncoderAttention


def decorator() -> None:
    """Our `support_torch_compile`."""
    from vllm.compilation import decorators

    from vllm_mmc.compilation.decorators import support_torch_compile

    decorators.support_torch_compile = support_torch_compile


STAND_INS: dict[str, Callable[[], None]] = {
    "attention": attention,
    "decorator": decorator,
}


def pytest_configure(config: pytest.Config) -> None:
    if name := os.environ["VLLM_MMC_STAND_IN"]:
        STAND_INS[name]()
    family = os.environ["VLLM_MMC_CHECKPOINT"]
    if family and not Path("checkpoints", family).exists():
        from mmc_testing.checkpoints import FAMILIES

        FAMILIES[family].write(Path("checkpoints", family), depth=4)


def pytest_collection_finish(session: pytest.Session) -> None:
    from vllm.plugins import load_general_plugins

    load_general_plugins()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forked tests first: a process that has used OpenMP hangs once it is forked."""
    items.sort(key=lambda item: item.get_closest_marker("forked") is None)
