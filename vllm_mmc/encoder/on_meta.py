# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stock towers that ours replace are built without memory and without random weights.

Hugging Face's constructors draw random weights, which are dropped right away. For
Qwen2-Audio's encoder of 0.6 billion parameters, one busy CPU core needs 24 s for that,
and 0.3 s on the meta device.
"""

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class BuildOnMeta(TorchFunctionMode):
    """A context in which instances of `classes` are built on the meta device.

    Only tensors that such a constructor makes, in whichever function, are affected:
    what else is built in the context, a projector for instance, is real. Nothing is
    patched: the mode looks for the constructor among the callers.

    Args:
        classes: Exact classes; a subclass is built as usual.
    """

    def __init__(self, classes: Collection[type]) -> None:
        super().__init__()
        self.classes = frozenset(classes)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self._is_constructor_running():
            return func(*args, **kwargs)
        with torch.device("meta"):
            return func(*args, **kwargs)

    def _is_constructor_running(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if (
                frame.f_code.co_name == "__init__"
                and type(frame.f_locals.get("self")) in self.classes
            ):
                return True
            frame = frame.f_back
        return False
