# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile regions with all of Dynamo's guards, to see what they would object to.

In service the guards are dropped. A graph that is right for every size and every
follower has guards that hold for every size and every follower, so with them in
place, and an error on any recompilation, a test can fail where service would be wrong.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
from vllm.config import VllmConfig

from vllm_mmc.compilation import regions


@contextmanager
def guarded_compilation(backend: str = "aot_eager") -> Generator[None, None, None]:
    """Regions first called inside are compiled with guards, one graph each.

    Raises:
        torch._dynamo.exc.Unsupported: A region has a graph break.
        torch._dynamo.exc.RecompileError: A guard fails: the graph of a region does
            not fit another size or another instance.
    """

    def compile_guarded(
        self: regions.CompiledStructure,
        leader: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        vllm_config: VllmConfig,
    ) -> regions.CompiledFn:
        compiled = torch.compile(
            regions._copy(type(leader).forward),
            fullgraph=True,
            dynamic=False,
            backend=backend,
        )
        with torch._dynamo.config.patch(error_on_recompile=False):
            compiled(leader, *args, **kwargs)
        return compiled

    def fall_back(
        self: regions.CompiledStructure, leader: nn.Module, error: Exception
    ) -> regions.CompiledFn:
        raise error

    with (
        mock.patch.object(regions.CompiledStructure, "_compile", compile_guarded),
        mock.patch.object(regions.CompiledStructure, "_fall_back", fall_back),
        mock.patch.dict("os.environ", VLLM_DISABLE_COMPILE_CACHE="1"),
        mock.patch.dict(regions._structures, clear=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
        torch._dynamo.config.patch(error_on_recompile=True),
    ):
        yield
