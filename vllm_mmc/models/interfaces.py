# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What every `Compiled...ForConditionalGeneration` shares."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch.nn as nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.offloader import get_offloader

from vllm_mmc.compilation.decorators import adopt, should_torch_compile_mm_encoder
from vllm_mmc.compilation.regions import stock_compile_off

logger = init_logger(__name__)


class SupportsCompiledEncoder(SupportsMultiModal):
    """Compiles the encoder that the stock class builds.

    Put it before the stock class among the bases. vLLM's constructor and weight
    loader run as they are; when the tower stands, the classes of its regions are
    exchanged in place. With `compile_mm_encoder` off nothing is changed at all.
    """

    encoder_regions: ClassVar[Mapping[type[nn.Module], type[nn.Module]]]
    """Stock class -> our compiled subclass."""

    @contextmanager
    def _mark_tower_model(
        self, vllm_config: VllmConfig, modalities: set[str] | str, **kwargs: Any
    ) -> Generator[None, None, None]:
        marked = super()._mark_tower_model(vllm_config, modalities, **kwargs)
        if not should_torch_compile_mm_encoder(vllm_config):
            with marked:
                yield
            return
        with marked, stock_compile_off(vllm_config):
            yield
        if reason := _why_not(vllm_config):
            logger.warning_once(
                "%s: the encoder runs eager: %s.", type(self).__name__, reason
            )
            return
        for name in self._tower_model_names:
            adopt(self.get_submodule(name), self.encoder_regions, vllm_config)


def _why_not(vllm_config: VllmConfig) -> str | None:
    lora = vllm_config.lora_config
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        return "adapters replace its layers (enable_tower_connector_lora)"
    if get_offloader().supports_tower_offload:
        return "its weights are offloaded"
    return None
