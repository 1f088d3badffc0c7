# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The entry point of the `vllm.general_plugins` group.

vLLM calls `register` in every one of its processes, and an exception here would take
down every `vllm` command on the machine. So it registers strings, imports no model,
and never raises.
"""

import logging
import multiprocessing

from vllm_mmc import __version__
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compat import envs, vllm_version
from vllm_mmc.settings import VARIABLES, Settings

logger = logging.getLogger("vllm.plugins.mmc")


def register() -> None:
    """Register our models under their own names and under the stock names."""
    try:
        _register()
    except Exception as error:
        logger.warning(
            "vllm_mmc is not used, all models are vLLM's own: %s: %s",
            type(error).__name__,
            error,
        )


def _register() -> None:
    envs.declare(VARIABLES)
    settings = Settings.from_environment()
    if settings.disable:
        _announce("vllm_mmc %s is switched off (VLLM_MMC_DISABLE=1)", __version__)
        return

    import vllm
    from vllm import ModelRegistry

    reason = vllm_version.untested(vllm.__version__)
    if reason and not settings.allow_untested_vllm:
        logger.warning(
            "vllm_mmc is not used: %s. Install a vllm_mmc for this vLLM, or set "
            "VLLM_MMC_ALLOW_UNTESTED_VLLM=1 to try it.",
            reason,
        )
        return
    for entry in CATALOG:
        ModelRegistry.register_model(entry.architecture, entry.model)
        ModelRegistry.register_model(entry.compiled_architecture, entry.model)
    _announce(
        "vllm_mmc %s serves %s; with compile_mm_encoder it compiles, once each: %s",
        __version__,
        ", ".join(entry.architecture for entry in CATALOG),
        "; ".join(f"{', '.join(entry.regions)}" for entry in CATALOG),
    )


def _announce(message: str, *args: str) -> None:
    """One line per start, not one per process."""
    if multiprocessing.parent_process() is None:
        logger.info(message, *args)
