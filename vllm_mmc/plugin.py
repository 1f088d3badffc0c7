# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The entry point of the `vllm.general_plugins` group.

vLLM calls `register` in every one of its processes, and an exception here would take
down every `vllm` command on the machine. So it registers strings, imports no model,
and never raises.
"""

import functools
import logging
import multiprocessing

from vllm_mmc import __version__, metrics
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compat import envs, vllm_logging, vllm_version
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
    try:
        settings = Settings.resolve()
    except ValueError as error:
        _warn("vllm_mmc is not used, all models are vLLM's own: %s", str(error))
        return
    if settings.disable:
        _announce("vllm_mmc %s is switched off (VLLM_MMC_DISABLE=1)", __version__)
        return

    import vllm

    reason = vllm_version.untested(vllm.__version__)
    if reason and not settings.allow_untested_vllm:
        _warn(
            "vllm_mmc is not used: %s. Install a vllm_mmc for this vLLM, or set "
            "VLLM_MMC_ALLOW_UNTESTED_VLLM=1 to try it.",
            reason,
        )
        return
    _register_models()
    vllm_logging.join()
    metrics.expose()
    _announce(
        "vllm_mmc %s serves, and with compile_mm_encoder compiles: %s",
        __version__,
        "; ".join(f"{e.architecture} ({', '.join(e.regions)})" for e in CATALOG),
    )


def _register_models() -> None:
    """All of the catalogue, or nothing."""
    from vllm import ModelRegistry

    before = dict(ModelRegistry.models)
    try:
        for entry in CATALOG:
            ModelRegistry.register_model(entry.architecture, entry.model)
            ModelRegistry.register_model(entry.compiled_architecture, entry.model)
    except Exception:
        ModelRegistry.models.clear()
        ModelRegistry.models.update(before)
        raise


# Child processes have the same environment and packages: their main process says it,
# one line per start.


@functools.cache
def _announce(message: str, *args: str) -> None:
    if multiprocessing.parent_process() is None:
        vllm_logging.when_configured(lambda: logger.info(message, *args))


@functools.cache
def _warn(message: str, *args: str) -> None:
    if multiprocessing.parent_process() is None:
        logger.warning(message, *args)
