# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The entry point of the `vllm.general_plugins` group.

vLLM calls `register` in every one of its processes, and an exception here would take
down every `vllm` command on the machine. So it registers strings, imports no model,
and never raises.
"""

import functools
import hashlib
import importlib.util
import logging
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_mmc import __version__, metrics
from vllm_mmc.catalog import (
    AUTO_MODULE,
    CATALOG,
    compiled_name,
    surveyed,
    versioned,
)
from vllm_mmc.compat import envs, symbols, vllm_logging, vllm_version
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
        _say_at_start(_say_that_it_is_off)
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
    _register_models(settings)
    vllm_logging.join()
    metrics.expose()
    _say_at_start(_say_what_is_served)


def _register_models(settings: Settings) -> None:
    """All of the catalogue that this vLLM has, or nothing."""
    import vllm
    from vllm import ModelRegistry

    if symbols.usable(symbols.VLLM_MODELS, symbols.MULTIMODAL_MODELS):
        known = symbols.VLLM_MODELS.need()
        entries = [e for e in CATALOG if e.architecture in known]
        others = surveyed(symbols.MULTIMODAL_MODELS.need(), known, vllm.__version__)
    else:
        # A row without a file needs the table to find the stock class.
        entries, others = [e for e in CATALOG if e.mixin is None], {}
    models = {
        e.architecture: versioned(e.compiled_architecture, vllm.__version__)
        for e in entries
    }
    if settings.survey:
        models |= others
    before = dict(ModelRegistry.models)
    own = {}
    if others and settings.survey and settings.survey_plugins:
        unknown = {k: v for k, v in before.items() if k not in known}
        own = _of_other_plugins(unknown)
    try:
        for architecture, model in models.items():
            if (foreign := _foreign(before.get(architecture))) is not None:
                _warn(
                    "%s stays what another plugin registered, %s. For ours, ask for "
                    "%s in --hf-overrides, or load that plugin last.",
                    architecture,
                    foreign,
                    compiled_name(model),
                )
            else:
                ModelRegistry.register_model(architecture, model)
            ModelRegistry.register_model(compiled_name(model), model)
        for architecture, model in own.items():
            ModelRegistry.register_model(architecture, model)
    except Exception:
        ModelRegistry.models.clear()
        ModelRegistry.models.update(before)
        raise


def _of_other_plugins(models: Mapping[str, Any]) -> dict[str, str]:
    """Multimodal models that other plugins have registered before: "module:Class" of
    the class that surveys the encoder, which `models/auto.py` makes."""
    import vllm

    versions = f"{vllm.__version__} {__version__}".encode()
    found = {}
    for architecture, registered in models.items():
        if (name := _foreign(registered)) is None:
            continue
        module, _, class_name = name.partition(":")
        source = _source(module)
        # Each multimodal model is registered with a processor.
        if b"register_processor" in source and class_name.isidentifier():
            digest = hashlib.sha256(source + versions).hexdigest()[:12]
            origin = f"{module}+{class_name}+{digest}"
            found[architecture] = f"{AUTO_MODULE}:Compiled{architecture}@{origin}"
    return found


def _source(module: str) -> bytes:
    try:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin).read_bytes() if spec and spec.origin else b""
    except (ImportError, OSError, ValueError):
        return b""


def _foreign(registered: Any) -> str | None:
    """What serves an architecture, if it is neither vLLM's own nor ours."""
    module = getattr(registered, "module_name", None)
    if registered is None or (module or "").partition(".")[0] in ("vllm", "vllm_mmc"):
        return None
    if module is not None:
        return f"{module}:{registered.class_name}"
    cls = getattr(registered, "model_cls", None)
    if cls is None or cls.__module__.partition(".")[0] in ("vllm", "vllm_mmc"):
        return None
    return f"{cls.__module__}:{cls.__qualname__}"


def _say_what_is_served(architecture: str) -> None:
    from vllm import ModelRegistry

    registered = ModelRegistry.models.get(architecture)
    module = getattr(registered, "module_name", "")
    if module.partition(".")[0] != "vllm_mmc":
        return
    regions = "what a survey of its encoder finds"
    for entry in CATALOG:
        if architecture in (entry.architecture, entry.compiled_architecture):
            regions = ", ".join(entry.regions)
    logger.info(
        "vllm_mmc %s serves %s. With compile_mm_encoder it compiles: %s.",
        __version__,
        architecture,
        regions,
    )


def _say_that_it_is_off(_: str) -> None:
    logger.info("vllm_mmc %s is switched off (VLLM_MMC_DISABLE=1)", __version__)


# Child processes have the same environment and packages: their main process says it,
# one line per architecture.


@functools.cache
def _say_at_start(say: Callable[[str], None]) -> None:
    if multiprocessing.parent_process() is None:
        vllm_logging.when_resolved(functools.cache(say))


@functools.cache
def _warn(message: str, *args: str) -> None:
    if multiprocessing.parent_process() is None:
        logger.warning(message, *args)
