# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Names that a package offers and imports when they are asked for.

Importing vLLM or torch takes seconds, and `vllm-mmc --help` needs neither.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a module's `__getattr__`.

    Args:
        package: The name of the module.
        names: Name -> the submodule that has it.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{names[name]}")
        return getattr(module, name)

    return __getattr__
