# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`SupportsCompiledEncoder`, the mixin of models."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from vllm.config import CompilationMode, VllmConfig
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

from vllm_mmc.compat import symbols
from vllm_mmc.compilation import measure
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.counters import counters, table
from vllm_mmc.compilation.decorators import should_torch_compile_mm_encoder
from vllm_mmc.encoder.audio_input import AudioValidationMixin, check_requests
from vllm_mmc.encoder.finite import FiniteEmbeddings
from vllm_mmc.encoder.install import (
    CompiledEncoder,
    EncoderPlan,
    InstallReport,
    install,
)
from vllm_mmc.encoder.model import compile_by_survey
from vllm_mmc.encoder.on_meta import BuildOnMeta
from vllm_mmc.settings import Settings

__all__ = ["CompiledEncoder", "EncoderPlan", "SupportsCompiledEncoder"]

logger = init_logger(__name__)


class SupportsCompiledEncoder(SupportsMultiModal):
    """Compiles the encoder that the stock class builds.

    The mixin goes before the stock class among the bases. vLLM's constructor and weight
    loader run unchanged. After vLLM has built a tower, `install` makes the tower ours.
    With `compile_mm_encoder` off, only the checks of what requests bring
    (`audio_validation`, `finite_check`) differ from stock.
    """

    encoder_plan: ClassVar[EncoderPlan] = EncoderPlan()
    """What a survey of the encoder cannot find."""
    audio_validation: ClassVar[type[AudioValidationMixin]] = AudioValidationMixin
    """The checks of a request's audio."""
    needs: ClassVar[tuple[symbols.Symbol, ...]] = ()
    """Private names of vLLM without which the encoder stays stock."""
    encoder_eager_because: str | None = "compile_mm_encoder is off"
    """Why the encoder is not compiled, in words for the user; None if it is."""
    encoder_report: InstallReport | None = None
    """What has changed in the encoder; None if it is not compiled."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_requests(cls, cls.audio_validation)

    @contextmanager
    def _mark_tower_model(
        self, vllm_config: VllmConfig, modalities: set[str] | str, **kwargs: Any
    ) -> Generator[None, None, None]:
        marked = super()._mark_tower_model(vllm_config, modalities, **kwargs)
        if not should_torch_compile_mm_encoder(vllm_config):
            with marked:
                yield
            return
        reason = _why_not(vllm_config, *self.needs)
        replaced = self.encoder_plan.towers if reason is None else ()
        with marked, stock_compile_off(vllm_config), BuildOnMeta(replaced):
            yield
        self.encoder_eager_because = reason
        if reason is not None:
            logger.warning_once(
                "%s: the encoder runs eager: %s.", type(self).__name__, reason
            )
            return
        self._install(symbols.TOWER_NAMES.of(self), vllm_config)

    def _install(self, names: Iterable[str], vllm_config: VllmConfig) -> None:
        plan = self.encoder_plan
        budget = encoder_budget(vllm_config) if plan.is_by_hand else None
        if self.encoder_report is None:  # vLLM marks two towers one after the other
            self.encoder_report = InstallReport()
            self._to_survey: dict[str, VllmConfig] = {}
        for name in names:
            if not plan.is_root(name):
                continue
            tower = self.get_submodule(name)
            ours = install(
                tower,
                plan,
                vllm_config,
                name=name,
                budget=budget,
                report=self.encoder_report,
            )
            if ours is not tower:
                self.set_submodule(name, ours)
            if plan.is_surveyed(name):
                self._to_survey[name] = vllm_config
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
            if (mark_unbacked := symbols.MARK_UNBACKED.find()) is not None:
                mark_unbacked(ids, 0)
            return embed_input_ids(ids)

        return super()._embed_text_input_ids(
            input_ids, embed, is_multimodal=is_multimodal
        )

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        self._survey_encoder()
        embeddings = super().embed_multimodal(**kwargs)
        return self.finite(embeddings, kwargs)

    def postprocess_encoder_output(
        self,
        outputs: dict[str, torch.Tensor],
        indices: list[int],
        per_item_out_tokens: list[int],
        dest: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """What a CUDA graph of the encoder made, of which vLLM asks nothing else."""
        super().postprocess_encoder_output(
            outputs, indices, per_item_out_tokens, dest, *args, **kwargs
        )
        self.finite_items(indices, dest)

    def finite_items(self, indices: list[int], dest: Any) -> None:
        """Check the items of these indices in `dest`, which a CUDA graph has made."""
        items = self.finite([dest[i] for i in indices], ["a CUDA graph's inputs"])
        for i, item in zip(indices, items, strict=True):
            dest[i] = item

    def finite(
        self, embeddings: MultiModalEmbeddings, inputs: Iterable[str]
    ) -> MultiModalEmbeddings:
        if "_finite_check" not in self.__dict__:
            wanted = Settings.resolve().finite_check
            check = FiniteEmbeddings(type(self).__name__) if wanted else None
            self.__dict__["_finite_check"] = check
        check = self.__dict__["_finite_check"]
        return embeddings if check is None else check(embeddings, inputs)

    def _survey_encoder(self) -> None:
        """Before the first input, of a request or of vLLM's profile run."""
        if self.encoder_report is None or not self._to_survey:
            return
        towers, self._to_survey = self._to_survey, {}
        if not get_pp_group().is_first_rank:
            return
        (*_, vllm_config) = towers.values()
        try:
            with override_forward_context(None):
                self.encoder_report.survey = compile_by_survey(
                    self, list(towers), super().embed_multimodal, vllm_config
                )
        except Exception as error:
            self.encoder_eager_because = f"its survey failed: {error!r}"
            logger.warning(
                "%s: the encoder runs eager: %s.",
                type(self).__name__,
                self.encoder_eager_because,
            )
            logger.debug("Traceback:", exc_info=True)

    def install_unmarked(self, vllm_config: VllmConfig) -> None:
        """After the constructor: the parts of the encoder that stock does not mark."""
        if not should_torch_compile_mm_encoder(vllm_config):
            return
        if self.encoder_report is None:
            if self.encoder_eager_because != type(self).encoder_eager_because:
                return
            self.encoder_eager_because = _why_not(vllm_config, *self.needs)
            if self.encoder_eager_because is None:
                names = [name for name, _ in self.named_children()]
                self._install(self._without_language_model(names), vllm_config)
            return
        # vLLM's Transformers backend marks modules of Hugging Face's model, and
        # exchanges linear layers afterwards.
        parents = {n.rpartition(".")[0] for n in symbols.TOWER_NAMES.of(self)} - {""}
        names = [
            f"{parent}.{name}"
            for parent in sorted(parents)
            for name, _ in self.get_submodule(parent).named_children()
        ]
        self._install(self._without_language_model(names), vllm_config)

    def _without_language_model(self, names: Iterable[str]) -> list[str]:
        language_model = {f"{name}." for name in symbols.LANGUAGE_NAMES.of(self)}
        return [
            name
            for name in names
            if not any(
                part.startswith(f"{name}.") or f"{name}.".startswith(part)
                for part in language_model
            )
        ]

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
                for tokens in self.warm_up_sizes(encoder):
                    self.run_dummy_encoder(encoder, tokens)
        report = self.encoder_report
        if report is not None and (encoders or report.survey is not None):
            changes, numbers = "\n".join(report.lines()), table(asdict(counters))
            logger.info("%s, encoder:\n%s\n%s", type(self).__name__, changes, numbers)

    def warm_up_sizes(self, encoder: "CompiledEncoder") -> list[int]:
        """The numbers of packed tokens that `warm_up_encoder` runs this encoder on."""
        return encoder.encoder_shapes.warmup_sizes()

    def run_dummy_encoder(self, encoder: "CompiledEncoder", tokens: int) -> None:
        """Run one encoder, and the regions after it, on this many packed tokens."""
        encoder.run_dummy(tokens)


def encoder_budget(vllm_config: VllmConfig) -> int | None:
    """The most embeddings that vLLM's scheduler asks one encoder call for."""
    config = vllm_config.model_config.multimodal_config
    if config is None or getattr(config, "video_pruning_rate", None):
        return None  # the scheduler counts what is left after pruning
    return MultiModalBudget(
        vllm_config, MULTIMODAL_REGISTRY, enable_cache=False
    ).get_encoder_budget()


def _why_not(vllm_config: VllmConfig, *needs: symbols.Symbol) -> str | None:
    mode = vllm_config.compilation_config.mode
    if mode in (CompilationMode.NONE, CompilationMode.STOCK_TORCH_COMPILE):
        return f"compilation mode {mode} compiles no encoder"
    lora = vllm_config.lora_config
    if lora is not None and getattr(lora, "enable_tower_connector_lora", False):
        return "adapters replace its layers (enable_tower_connector_lora)"
    if get_offloader().supports_tower_offload:
        return "its weights are offloaded"
    towers = symbols.MARK_TOWER, symbols.TOWER_NAMES, symbols.LANGUAGE_NAMES
    return symbols.absent(*towers, *needs)
