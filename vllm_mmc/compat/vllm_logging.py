# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Let vLLM print what this package logs.

Why: vLLM gives handlers to the logger "vllm" alone, so INFO of "vllm_mmc.*" is lost;
    and it calls plugins before it configures any logging, so INFO of a plugin at that
    time is lost whatever its logger is called. Configuring it earlier would make
    `vllm --version`, which calls plugins too, print more than a version.
Upstream: no folder: a wish for a place for plugins, no fault that a script can show.
Remove when: vLLM configures logging before it calls plugins and has a place for the
    loggers of plugins.
Undo: `leave()`; a line that waits is dropped with it.
"""

import logging
from collections.abc import Callable

from vllm_mmc.compat import symbols

# The first line that every way to start an engine prints in the main process after
# logging was configured, at level INFO.
STARTS = "vllm.config.model"
RESOLVED = "Resolved architecture: "


def applies() -> str | None:
    """Why lines are lost; None if they are printed."""
    if (reason := symbols.MODEL_LOGGER.absent()) is not None:
        return reason
    if symbols.MODEL_LOGGER.need().name != STARTS:
        return f"vLLM has no logger {STARTS}: {symbols.MODEL_LOGGER.without}"
    return None


def join() -> None:
    """Print "vllm_mmc.*" as if it were "vllm.*": same handlers, same level."""
    logging.getLogger("vllm_mmc").parent = logging.getLogger("vllm")


def leave() -> None:
    logging.getLogger("vllm_mmc").parent = logging.root
    starts = logging.getLogger(STARTS)
    starts.filters = [f for f in starts.filters if not isinstance(f, _Waiting)]


def when_resolved(say: Callable[[str], None]) -> None:
    """Call `say` with the architecture of each model that an engine starts with."""
    logging.getLogger(STARTS).addFilter(_Waiting(say))


class _Waiting(logging.Filter):
    """Lets every record pass, and calls `say` before one that names an architecture."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def filter(self, record: logging.LogRecord) -> bool:
        if str(record.msg).startswith(RESOLVED):
            self.say(record.getMessage().removeprefix(RESOLVED))
        return True
