# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""MKL's kernels are chosen by one thread, before an encoder computes a table.

What happens otherwise is rare, and takes a fresh process each time: a rotary table
that is off by 1e-4.
"""

import contextlib
import importlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vllm_mmc.models
from vllm_mmc.compat.mkl_functions import FUNCTIONS


class Calls(TorchDispatchMode):
    """Notes each function of one tensor: its name, dtype, device and size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, torch.dtype, str, int]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if len(args) == 1 and isinstance(x := args[0], torch.Tensor):
            name = func.overloadpacket.__name__
            self.seen.add((name, x.dtype, x.device.type, x.numel()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "default", [contextlib.nullcontext, lambda: torch.device("meta")]
)
def test_who_imports_a_model_has_them(default: Any) -> None:
    with default(), Calls() as calls:
        importlib.reload(vllm_mmc.models)
    expected = {
        (name, dtype, "cpu", 1)
        for name in FUNCTIONS
        for dtype in (torch.float32, torch.float64)
    }
    assert expected <= calls.seen
