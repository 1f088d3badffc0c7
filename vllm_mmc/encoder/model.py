# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Survey the encoder of a whole model, and attach what the survey found."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from vllm.config import VllmConfig
from vllm.logger import init_logger

from vllm_mmc.cache import key, store
from vllm_mmc.cache.entry import Entry, entry_for
from vllm_mmc.compilation import measure
from vllm_mmc.compilation.attached import attach
from vllm_mmc.compilation.structure import class_digest
from vllm_mmc.encoder import dummy_inputs
from vllm_mmc.encoder.survey import Survey, survey

logger = init_logger(__name__)


def attach_regions(root: nn.Module, found: Survey, vllm_config: VllmConfig) -> None:
    """Compile each region of a survey from its next call on.

    Args:
        root: What was surveyed, or a model of the same structure.
        found: The survey.
        vllm_config: The configuration that `root` was built with.

    Raises:
        AttributeError: `root` has no module of a name in `found`.
    """
    modules = [
        (root.get_submodule(path), region.spec)
        for region in found.regions
        for path in region.paths
    ]
    for module, spec in modules:
        attach(module, spec, vllm_config)


def compile_by_survey(
    model: nn.Module,
    roots: Sequence[str],
    embed: Callable[..., Any],
    vllm_config: VllmConfig,
) -> Survey:
    """Survey the encoder of `model`, attach its regions, and run all of them once.

    What a survey found is kept in the compile cache: another process with the same
    model and configuration surveys nothing.

    Args:
        model: A multimodal model of vLLM whose weights are loaded.
        roots: Names of the modules that hold the encoder.
        embed: vLLM's `embed_multimodal`, of the stock class.
        vllm_config: The configuration of the engine.
    """
    start = time.perf_counter()
    towers = nn.ModuleDict(
        {name.replace(".", "/"): model.get_submodule(name) for name in roots}
    )
    entry = _entry(towers, vllm_config)
    found = _read(entry)
    with torch.inference_mode():
        calls = _calls(embed, vllm_config)
        if not calls:
            return Survey(eager={"the encoder": "it takes no dummy input of vLLM's"})
        if found is None:
            found = survey(towers, calls)
            _write(entry, found)
            how = f"surveyed in {time.perf_counter() - start:.2f} s"
        else:
            how = f"surveyed at an earlier start ({entry.directory})"
        attach_regions(towers, found, vllm_config)
        with measure.at_warmup():
            for call in calls:
                call()
    logger.info(
        "%s, encoder %s: %s",
        type(model).__name__,
        how,
        "; ".join(f"{r.spec.name} x {len(r.paths)}" for r in found.regions)
        or "no region",
    )
    for name, reason in found.eager.items():
        logger.info("%s runs eager: %s.", name, reason)
    return found


def _calls(
    embed: Callable[..., Any], vllm_config: VllmConfig
) -> list[Callable[[], Any]]:
    """Calls of the encoder, each made once: attributes that appear in a first call
    are structure. Those that raise an error are left out."""
    calls: list[Callable[[], Any]] = []
    for batch in dummy_inputs.batches(vllm_config):
        call = functools.partial(embed, **batch)
        try:
            call()
        except Exception as error:
            logger.debug("A dummy input is refused by the encoder: %r", error)
            continue
        calls.append(call)
    return calls


def _entry(towers: nn.Module, vllm_config: VllmConfig) -> Entry:
    """The entry of the compile cache that the survey of an encoder has."""
    described = [
        (
            name,
            class_digest(type(module)),
            [tuple(p.shape) for p in module.parameters(recurse=False)],
        )
        for name, module in towers.named_modules()
    ]
    code = Path(survey.__code__.co_filename).read_bytes()
    factors = {
        "modules": key.sha256(repr(described).encode()),
        "sizes": repr(dummy_inputs.OPTIONS),
        "survey": key.sha256(code),
    }
    return entry_for("Survey", factors, {}, vllm_config, unportable=None, wanted=True)


def _read(entry: Entry) -> Survey | None:
    try:
        kept = store.load_json(entry)
        return None if kept is None else Survey.from_json(kept)
    except (OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is no survey (%r): surveying again.", entry.directory, error)
        return None


def _write(entry: Entry, found: Survey) -> None:
    try:
        store.save_json(entry, found.to_json())
    except OSError as error:
        logger.warning("The survey cannot be kept in %s (%r).", entry.directory, error)
