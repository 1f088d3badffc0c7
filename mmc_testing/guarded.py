# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compile regions with all of Dynamo's guards, to see what they would object to.

In service the guards on the module are dropped. A graph that is right for every size
and every follower has guards that hold for every size and every follower, so with them
in place, and an error on any recompilation, a test can fail where service would be
wrong.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
from vllm.config import VllmConfig

from vllm_mmc.compilation import compiler, shared_graph
from vllm_mmc.compilation.arguments import Arguments, Signature
from vllm_mmc.compilation.compiler import Graph
from vllm_mmc.compilation.shared_graph import SharedGraph


@contextmanager
def guarded_compilation(backend: str = "aot_eager") -> Generator[None, None, None]:
    """Regions first called inside are compiled with guards, one graph each.

    Raises:
        torch._dynamo.exc.Unsupported: A region has a graph break.
        torch._dynamo.exc.RecompileError: A guard fails: the graph of a region does
            not fit another size or another instance.
    """

    def compile_guarded(
        self: SharedGraph,
        leader: nn.Module,
        arguments: Arguments,
        vllm_config: VllmConfig,
    ) -> tuple[Graph, None]:
        signature = Signature(type(leader).forward)
        args, kwargs = compiler._marked(
            self.spec,
            signature,
            arguments,
            vllm_config.compilation_config,
            unbacked=True,
        )
        compiled = torch.compile(
            compiler._copy(type(leader).forward),
            fullgraph=True,
            dynamic=False,
            backend=backend,
        )
        with torch._dynamo.config.patch(error_on_recompile=False):
            compiled(leader, *args, **kwargs)

        def run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with torch.inference_mode():
                args, kwargs = self._canonical(signature, (args, kwargs))
                return compiled(module, *args, **kwargs)

        return Graph(lambda f_locals: True, run), None

    def fail(self: SharedGraph, *args: Any) -> None:
        raise next(arg for arg in args if isinstance(arg, Exception))

    with (
        mock.patch.object(SharedGraph, "_compile", compile_guarded),
        mock.patch.object(SharedGraph, "_fall_back", fail),
        mock.patch.object(SharedGraph, "_drop", fail),
        mock.patch.dict("os.environ", VLLM_DISABLE_COMPILE_CACHE="1"),
        mock.patch.dict(shared_graph._structures, clear=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
        torch._dynamo.config.patch(error_on_recompile=True),
    ):
        yield
