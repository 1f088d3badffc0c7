# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The mixins of models (`SupportsCompiledEncoder`) and of their towers
(`CompiledEncoder`)."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
import torch.nn as nn
from vllm.config import CompilationMode, VllmConfig, get_current_vllm_config
from vllm.distributed import get_pp_group
from vllm.forward_context import override_forward_context
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsMultiModal,
)
from vllm.model_executor.offloader import get_offloader
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.encoder_budget import MultiModalBudget

from vllm_mmc.attention.mm_encoder_attention import use_our_attention
from vllm_mmc.compilation import measure
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.counters import counters, table
from vllm_mmc.compilation.decorators import (
    adopt,
    should_torch_compile_mm_encoder,
)
from vllm_mmc.encoder.audio_input import AudioValidationMixin, with_audio_validation
from vllm_mmc.encoder.model import compile_by_survey
from vllm_mmc.encoder.on_meta import BuildOnMeta
from vllm_mmc.encoder.survey import Survey
from vllm_mmc.layers.upcast import use_upcast
from vllm_mmc.settings import Settings
from vllm_mmc.sizes.buckets import TokenBuckets

logger = init_logger(__name__)


class SupportsCompiledEncoder(SupportsMultiModal):
    """Compiles the encoder that the stock class builds.

    The mixin goes before the stock class among the bases. vLLM's constructor and
    weight loader run unchanged. After vLLM has built the tower, the classes of its
    regions are exchanged in place. With `compile_mm_encoder` off, only the check of
    audio (`audio_validation`) differs from stock.
    """

    encoder_regions: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    """Stock class -> our compiled subclass. An encoder without any is surveyed."""
    encoder_rewrites: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    """Stock class -> our subclass with other arithmetic and the same results, for
    modules of an encoder that is surveyed."""
    native_encoders: ClassVar[Mapping[type[nn.Module], type["CompiledEncoder"]]] = {}
    """Hugging Face's encoder -> our encoder, built instead, with the same parameter
    names in the checkpoint."""
    audio_validation: ClassVar[type[AudioValidationMixin]] = AudioValidationMixin
    """The checks of a request's audio."""
    encoder_eager_because: str | None = "compile_mm_encoder is off"
    """Why the encoder is not compiled, in words for the user; None if it is."""
    encoder_survey: Survey | None = None
    """What a survey of the encoder found, if there was one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        factories = getattr(cls, "_processor_factory", None)  # the stock class's
        if factories is not None:
            cls._processor_factory = with_audio_validation(
                factories, cls.audio_validation
            )

    @contextmanager
    def _mark_tower_model(
        self, vllm_config: VllmConfig, modalities: set[str] | str, **kwargs: Any
    ) -> Generator[None, None, None]:
        marked = super()._mark_tower_model(vllm_config, modalities, **kwargs)
        if not should_torch_compile_mm_encoder(vllm_config):
            with marked:
                yield
            return
        reason = _why_not(vllm_config)
        replaced = self.native_encoders if reason is None else ()
        with marked, stock_compile_off(vllm_config), BuildOnMeta(replaced):
            yield
        self.encoder_eager_because = reason
        if reason is not None:
            logger.warning_once(
                "%s: the encoder runs eager: %s.", type(self).__name__, reason
            )
            return
        self._compile_roots(self.encoder_roots(), vllm_config)

    def _compile_roots(self, names: Sequence[str], vllm_config: VllmConfig) -> None:
        budget = _encoder_budget(vllm_config) if self.encoder_regions else None
        for name in names:
            tower = self.get_submodule(name)
            if (native := self.native_encoders.get(type(tower))) is not None:
                config = vllm_config.with_hf_config(tower.config)
                if hasattr(vllm_config.model_config.hf_config, "quantization_config"):
                    # The checkpoint is quantised, but stock builds this tower without
                    # a quant_config, so ours must do the same.
                    config.quant_config = None
                tower = native(vllm_config=config, prefix=name)
                self.set_submodule(name, tower)
            for part in tower.modules():
                if type(part) in self.native_encoders:  # it is on the meta device
                    raise RuntimeError(
                        f"vllm_mmc replaces {type(part).__name__} as a whole tower "
                        f"only; found it inside of {name}. This vLLM release is not "
                        "supported: set VLLM_MMC_DISABLE=1"
                    )
            exchanged = {**self.encoder_rewrites, **self.encoder_regions}
            compile_encoder(tower, exchanged, vllm_config, budget)
        if not self.encoder_regions:
            # vLLM marks two towers one after the other.
            self.__dict__.setdefault("_to_survey", []).extend(names)
            self.__dict__["_survey_config"] = vllm_config
        if not hasattr(self, "_warm_up_hook"):
            # The first `forward` is in vLLM's profile run, after it has encoded the
            # largest items and before any request.
            hook = type(self)._before_first
            self._warm_up_hook = self.register_forward_pre_hook(hook)

    def _embed_text_input_ids(
        self,
        input_ids: torch.Tensor,
        embed_input_ids: Callable[[torch.Tensor], torch.Tensor],
        *,
        is_multimodal: torch.Tensor | None,
    ) -> torch.Tensor:
        def embed(ids: torch.Tensor) -> torch.Tensor:
            # A sharded embedding compiles a kernel of its own, which would be compiled
            # again for one token. `detach`: a mark stays on its tensor.
            ids = ids.detach()
            torch._dynamo.decorators.mark_unbacked(ids, 0)
            return embed_input_ids(ids)

        return super()._embed_text_input_ids(
            input_ids, embed, is_multimodal=is_multimodal
        )

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        self._survey_encoder()
        return super().embed_multimodal(**kwargs)

    def _survey_encoder(self) -> None:
        """Before the first input, of a request or of vLLM's profile run."""
        names = self.__dict__.pop("_to_survey", ())
        if not names or not get_pp_group().is_first_rank:
            return
        try:
            with override_forward_context(None):
                self.encoder_survey = compile_by_survey(
                    self, names, super().embed_multimodal, self._survey_config
                )
        except Exception as error:
            self.encoder_eager_because = f"its survey failed: {error!r}"
            logger.warning(
                "%s: the encoder runs eager: %s.",
                type(self).__name__,
                self.encoder_eager_because,
            )
            logger.debug("Traceback:", exc_info=True)

    def mark_unmarked_encoder(self, vllm_config: VllmConfig) -> None:
        """Compile all but the language model, if the stock class marks no encoder."""
        if hasattr(self, "_warm_up_hook") or (
            self.encoder_eager_because != type(self).encoder_eager_because
        ):
            return
        if not should_torch_compile_mm_encoder(vllm_config):
            return
        self.encoder_eager_because = _why_not(vllm_config)
        if self.encoder_eager_because is None:
            language_model = {n.partition(".")[0] for n in self._language_model_names}
            others = [n for n, _ in self.named_children() if n not in language_model]
            self._compile_roots(self.encoder_roots() or others, vllm_config)

    def encoder_roots(self) -> list[str]:
        """The modules to compile below: those that stock has marked as a tower."""
        return list(self._tower_model_names)

    def _before_first(self, _: Any) -> None:
        self._warm_up_hook.remove()
        self._survey_encoder()
        self.warm_up_encoder()

    def warm_up_encoder(self) -> None:
        """Compile, or load, every graph that a request can need."""
        # There is none on another pipeline rank, or with a limit of 0 items.
        encoders = [m for m in self.modules() if isinstance(m, CompiledEncoder)]
        with (
            torch.inference_mode(),
            override_forward_context(None),
            measure.at_warmup(),
        ):
            for encoder in encoders:
                for tokens in encoder.encoder_shapes.warmup_sizes():
                    self.run_dummy_encoder(encoder, tokens)
        if encoders or self.encoder_survey is not None:
            name = type(self).__name__
            logger.info("%s, encoder:\n%s", name, table(asdict(counters)))

    def run_dummy_encoder(self, encoder: "CompiledEncoder", tokens: int) -> None:
        """Run one encoder, and the regions after it, on this many packed tokens."""
        encoder.run_dummy(tokens)


class CompiledEncoder(nn.Module):
    """A tower whose calls are packed. It goes before the stock class.

    A model adopts the stock tower that vLLM has built; the constructor does not run.
    The constructor builds the encoder without a model. Its arguments are those of the
    stock constructor. The configuration is `vllm_config`, or vLLM's current one.

    Attributes:
        encoder_shapes: which size gets which graph.
    """

    encoder_regions: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    """Stock class -> our compiled subclass, for the modules of this tower."""
    encoder_shapes: TokenBuckets

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vllm_config = kwargs.get("vllm_config") or get_current_vllm_config()
        with stock_compile_off(vllm_config):
            super().__init__(*args, **kwargs)
        compile_encoder(self, self.encoder_regions, vllm_config)

    @property
    def token_multiple(self) -> int:
        """The number of packed tokens of every call is a multiple of this."""
        return 1

    def max_packed_tokens(self, embeddings: int) -> int:
        """The most packed tokens that become this many embeddings, without pruning."""
        return embeddings

    def run_dummy(self, tokens: int) -> torch.Tensor:
        """Run the encoder once on this many packed tokens, a multiple of the step."""
        raise NotImplementedError


def compile_encoder(
    root: nn.Module,
    regions: Mapping[type[nn.Module], type[nn.Module]],
    vllm_config: VllmConfig,
    budget: int | None = None,
) -> None:
    """Exchange classes below `root` in place: its regions, attention and products.

    Args:
        root: Searched with all its submodules, itself included.
        regions: Stock class -> our subclass of it. Exact types only.
        vllm_config: The configuration that the modules were built with.
        budget: The most embeddings that one call can be asked for, if known.

    Raises:
        ValueError: A setting has a value that is not allowed.
    """
    adopt(root, regions, vllm_config)
    use_our_attention(root)
    use_upcast(root)
    settings = Settings.of(vllm_config)
    for module in root.modules():
        if isinstance(module, CompiledEncoder):
            limit = module.max_packed_tokens(budget) if budget else None
            module.encoder_shapes = TokenBuckets(
                settings, limit or None, module.token_multiple, type(module).__name__
            )


def _encoder_budget(vllm_config: VllmConfig) -> int | None:
    """The most embeddings that vLLM's scheduler asks one encoder call for."""
    config = vllm_config.model_config.multimodal_config
    if config is None or getattr(config, "video_pruning_rate", None):
        return None  # the scheduler counts what is left after pruning
    return MultiModalBudget(
        vllm_config, MULTIMODAL_REGISTRY, enable_cache=False
    ).get_encoder_budget()


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
