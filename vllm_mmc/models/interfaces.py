# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What every `Compiled...ForConditionalGeneration` shares."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn as nn
from vllm.config import CompilationMode, VllmConfig
from vllm.forward_context import override_forward_context
from vllm.inputs import MultiModalDataDict
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.offloader import get_offloader
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import MultiModalBudget
from vllm.multimodal.parse import AudioProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import BaseProcessingInfo

from vllm_mmc.attention.mm_encoder_attention import use_our_attention
from vllm_mmc.compilation.counters import counters, table
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
    encoder_eager_because: str | None = "compile_mm_encoder is off"
    """Why the encoder is not compiled, in words for the user; None if it is."""

    @property
    @abstractmethod
    def encoder_step(self) -> int:
        """Every encoder call has a multiple of so many packed tokens."""

    @abstractmethod
    def encoder_tokens(self, embeddings: int) -> int:
        """The most packed tokens that become so many embeddings, if none is pruned."""

    @abstractmethod
    def run_dummy_encoder(self, tokens: int) -> None:
        """Run the encoder once on so many packed tokens, a multiple of the step."""

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
        self.encoder_eager_because = _why_not(vllm_config)
        if self.encoder_eager_because is not None:
            logger.warning_once(
                "%s: the encoder runs eager: %s.",
                type(self).__name__,
                self.encoder_eager_because,
            )
            return
        limit = self._encoder_token_limit(vllm_config)
        for name in self._tower_model_names:
            compile_encoder(
                self.get_submodule(name),
                self.encoder_regions,
                vllm_config,
                limit=limit,
                step=self.encoder_step,
            )
        # vLLM's profile run has encoded the largest items when it first comes here,
        # and no request has.
        self._warm_up_hook = self.register_forward_pre_hook(type(self)._before_first)

    def _embed_text_input_ids(
        self,
        input_ids: torch.Tensor,
        embed_input_ids: Callable[[torch.Tensor], torch.Tensor],
        *,
        is_multimodal: torch.Tensor | None,
    ) -> torch.Tensor:
        def embed(ids: torch.Tensor) -> torch.Tensor:
            # Sharded, vLLM's embedding compiles a kernel of its own, which would be
            # compiled again for one token. A mark stays on the tensor that gets it.
            ids = ids.detach()
            torch._dynamo.decorators.mark_unbacked(ids, 0)
            return embed_input_ids(ids)

        return super()._embed_text_input_ids(
            input_ids, embed, is_multimodal=is_multimodal
        )

    def _before_first(self, _: Any) -> None:
        self._warm_up_hook.remove()
        self.warm_up_encoder()

    def _encoder_token_limit(self, vllm_config: VllmConfig) -> int | None:
        """The most packed tokens that vLLM's scheduler lets one encoder call have."""
        config = vllm_config.model_config.multimodal_config
        if config is None or getattr(config, "video_pruning_rate", None):
            return None  # the scheduler counts what is left after pruning
        budget = MultiModalBudget(
            vllm_config, MULTIMODAL_REGISTRY, enable_cache=False
        ).get_encoder_budget()
        return self.encoder_tokens(budget) or None

    def warm_up_encoder(self) -> None:
        """Compile, or load, every graph that a request can need."""
        parts = [self.get_submodule(name) for name in self._tower_model_names]
        compiled = set(self.encoder_regions.values())
        if any(compiled.isdisjoint(map(type, part.modules())) for part in parts):
            return  # not on this rank, or left out by a limit of 0
        with torch.inference_mode(), override_forward_context(None):
            for tokens in parts[0].encoder_shapes.warmup_sizes():
                self.run_dummy_encoder(tokens)
        logger.info("%s, encoder:\n%s", type(self).__name__, table(asdict(counters)))


class RefusesBadAudio(BaseProcessingInfo):
    """What no encoder can hear is an error of the request.

    vLLM lets it through, and a NaN stays in the cache of keys and values: other
    requests are answered wrongly from then on. Put it before the stock class.
    """

    def parse_mm_data(
        self, mm_data: MultiModalDataDict, *, validate: bool = True
    ) -> MultiModalDataItems:
        items = super().parse_mm_data(mm_data, validate=validate)
        audios = items.get("audio")
        if isinstance(audios, AudioProcessorItems):
            for index in range(len(audios)):
                samples = audios.get(index)
                if samples is None:  # known from an earlier request
                    continue
                if len(samples) == 0:
                    raise ValueError(f"audio {index} must have at least one sample")
                if not np.isfinite(samples).all():
                    raise ValueError(
                        f"audio {index} must be finite samples, usually from -1 to 1; "
                        f"found {np.count_nonzero(~np.isfinite(samples))} that are "
                        f"NaN or infinite, of {np.size(samples)}"
                    )
        return items


def compile_encoder(
    root: nn.Module,
    regions: Mapping[type[nn.Module], type[nn.Module]],
    vllm_config: VllmConfig,
    *,
    step: int,
    limit: int | None = None,
) -> None:
    """Exchange classes below `root` in place: its regions, and attention.

    Arguments are those of `adopt`.
    """
    adopt(root, regions, vllm_config, limit=limit, step=step)
    use_our_attention(root)


def _why_not(vllm_config: VllmConfig) -> str | None:
    mode = vllm_config.compilation_config.mode
    if mode in (CompilationMode.NONE, CompilationMode.STOCK_TORCH_COMPILE):
        return f"compilation mode {mode} compiles no encoder"
    lora = vllm_config.lora_config
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        return "adapters replace its layers (enable_tower_connector_lora)"
    if get_offloader().supports_tower_offload:
        return "its weights are offloaded"
    return None
