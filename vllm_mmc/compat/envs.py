# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Make vLLM know our environment variables.

Why: vLLM reports every unknown variable that starts with VLLM_, and refuses to start
    with --fail-on-environ-validation.
Upstream: no folder: a wish for a place for plugins, no fault that a script can show.
Remove when: vLLM lets plugins declare theirs.
Undo: `forget()`.

Only variables that are set are declared, because all declared ones are part of vLLM's
compile cache key, and installing this package must not change that key.
"""

import os
from collections.abc import Iterable


def applies() -> str | None:
    """Why it does nothing; None if it does what it is for."""
    import vllm.envs

    if isinstance(getattr(vllm.envs, "environment_variables", None), dict):
        return None
    return "vllm.envs keeps no dict of its environment variables"


def declare(names: Iterable[str]) -> None:
    if applies() is not None:
        return
    import vllm.envs

    for name in names:
        if name in os.environ:
            vllm.envs.environment_variables[name] = lambda name=name: os.getenv(name)


def forget(names: Iterable[str]) -> None:
    if applies() is not None:
        return
    import vllm.envs

    for name in names:
        vllm.envs.environment_variables.pop(name, None)
