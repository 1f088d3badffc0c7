# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Resample audio with soxr where torchaudio, vLLM's default resampler, is missing.

Why: the CPU wheel of vLLM runs without torchaudio, and then answers a request with
    audio of another rate with status 500. soxr comes with vllm[audio].
Upstream: upstream/audio_resampler
Remove when: vLLM chooses a resampler that is installed.
Undo: nothing is kept; only the parser that is passed changes.
"""

from importlib.util import find_spec
from typing import Any

from vllm_mmc.compat import symbols

_NEEDED = (symbols.RESAMPLER, symbols.RESAMPLING_METHOD)


def applies() -> str | None:
    """Why it does nothing; None if it does what it is for."""
    return symbols.absent(*_NEEDED)


def choose_installed(parser: Any) -> None:
    """Let a `MultiModalDataParser` of vLLM resample with what is installed."""
    if not symbols.usable(*_NEEDED):
        return
    resampler = parser.audio_resampler
    if resampler.method == "torchaudio" and find_spec("torchaudio") is None:
        resampler.method = "soxr"
