# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The one walk that makes a stock encoder ours, and the report of what it did.

A module that changes is replaced in its parent by an object of our class with the same
attributes. Parameters, names of modules and hooks stay as they are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.linear import ReplicatedLinear

from vllm_mmc.attention.mm_encoder_attention import MMEncoderAttention, attention_for
from vllm_mmc.compilation.compiler import stock_compile_off
from vllm_mmc.compilation.decorators import init_region, is_compiled_class
from vllm_mmc.encoder.survey import Survey
from vllm_mmc.layers.layer_norm import layer_norm_for
from vllm_mmc.layers.row_parallel import unranked_for
from vllm_mmc.layers.upcast import convolution_for, linear_method_for
from vllm_mmc.settings import Settings
from vllm_mmc.sizes.buckets import TokenBuckets


@dataclass(frozen=True)
class EncoderPlan:
    """What a survey of an encoder cannot find.

    Attributes:
        towers: Hugging Face's encoder -> our encoder, built instead, with the same
            parameter names in the checkpoint.
        classes: Stock class -> our subclass of it. Exact types only.
        roots: Names of the modules to change, of those that stock marks as towers. By
            default all.
        surveyed: Names of the roots whose regions a survey finds. By default all, if
            no class of the plan is compiled, else none.
    """

    towers: Mapping[type[nn.Module], type["CompiledEncoder"]] = field(
        default_factory=dict
    )
    classes: Mapping[type[nn.Module], type[nn.Module]] = field(default_factory=dict)
    roots: tuple[str, ...] | None = None
    surveyed: tuple[str, ...] | None = None

    @property
    def is_by_hand(self) -> bool:
        """Whether regions are classes of this package."""
        return bool(self.towers) or any(map(is_compiled_class, self.classes.values()))

    def is_root(self, name: str) -> bool:
        """Whether modules below this tower change."""
        return self.roots is None or name in self.roots

    def is_surveyed(self, root: str) -> bool:
        """Whether a survey finds the regions below this root."""
        if self.surveyed is None:
            return not self.is_by_hand
        return root in self.surveyed


@dataclass
class InstallReport:
    """What has changed in an encoder.

    Attributes:
        changes: "stock class -> class of this package" -> number of modules.
        attention: Who computes attention on CPU; None on other devices, and if no
            attention layer has changed.
        survey: What a survey found; None if there was none.
    """

    changes: Counter[str] = field(default_factory=Counter)
    attention: str | None = None
    survey: Survey | None = None

    def lines(self) -> Iterator[str]:
        """For the user: what changed, and what the survey found."""
        for change, count in self.changes.items():
            yield f"{change} x {count}"
        if self.attention is not None:
            yield f"attention: {self.attention}"
        for region in self.survey.regions if self.survey is not None else ():
            yield f"{region.spec.name} x {len(region.paths)}, by survey"


class CompiledEncoder(nn.Module):
    """A tower whose calls are packed. It goes before the stock class.

    A model adopts the stock tower that vLLM has built; the constructor does not run.
    The constructor builds the encoder without a model. Its arguments are those of the
    stock constructor. The configuration is `vllm_config`, or vLLM's current one.

    Attributes:
        encoder_plan: The classes that replace modules of this tower.
        encoder_shapes: which size gets which graph.
    """

    encoder_plan = EncoderPlan()
    encoder_shapes: TokenBuckets

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vllm_config = kwargs.get("vllm_config") or get_current_vllm_config()
        with stock_compile_off(vllm_config):
            super().__init__(*args, **kwargs)
        install(self, self.encoder_plan, vllm_config)

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


def install(
    root: nn.Module,
    plan: EncoderPlan,
    vllm_config: VllmConfig,
    *,
    name: str = "",
    budget: int | None = None,
    report: InstallReport | None = None,
) -> nn.Module:
    """Make an encoder ours: its towers, regions, attention and products.

    Call it while vLLM builds the model, before weights are loaded: the current
    configuration decides which attention runs, and vLLM processes the weights of linear
    layers after it has loaded them.

    Args:
        root: Changed with all its submodules.
        plan: Which classes become which of ours.
        vllm_config: The configuration that the modules were built with.
        name: The name of `root` in the model.
        budget: The most embeddings that one call can be asked for, if known.
        report: Gets what is changed.

    Returns:
        `root`, or what takes its place.

    Raises:
        ValueError: A setting has a value that is not allowed.
    """
    walk = _Walk(plan, vllm_config, budget, report or InstallReport())
    return walk.visit(root, name)


class _Walk:
    def __init__(
        self,
        plan: EncoderPlan,
        vllm_config: VllmConfig,
        budget: int | None,
        report: InstallReport,
    ) -> None:
        self.plan = plan
        self.vllm_config = vllm_config
        self.budget = budget
        self.report = report
        self.settings = Settings.of(vllm_config)
        # A module can have two parents. The stock one stays alive, or another object
        # could get its id.
        self.visited: dict[int, tuple[nn.Module, nn.Module]] = {}

    def visit(self, module: nn.Module, name: str) -> nn.Module:
        if id(module) in self.visited:
            return self.visited[id(module)][1]
        new = self.replacement(module, name)
        self.visited[id(module)] = self.visited[id(new)] = (module, new)
        for child_name, child in list(new.named_children()):
            path = f"{name}.{child_name}" if name else child_name
            if (new_child := self.visit(child, path)) is not child:
                setattr(new, child_name, new_child)
        return new

    def replacement(self, module: nn.Module, name: str) -> nn.Module:
        """`module` if nothing of it changes, else an object of a class of ours."""
        new = module
        if (native := self.plan.towers.get(type(module))) is not None:
            new = self._built(native, module.config, name)
        elif (ours := self.plan.classes.get(type(module))) is not None:
            new = in_place_of(module, ours)
            init_region(new, self.vllm_config)
        elif (ours := _layer_for(module)) is not None:
            new = in_place_of(module, ours)
        if new is not module:
            self._note(module, new)
        if isinstance(new, MMEncoderAttention):
            new.choose_backend()
            self.report.attention = new.cpu_choice()
        if isinstance(new, CompiledEncoder):
            limit = new.max_packed_tokens(self.budget) if self.budget else None
            new.encoder_shapes = TokenBuckets(
                self.settings, limit or None, new.token_multiple, type(new).__name__
            )
        if (method := linear_method_for(new)) is not None:
            self._note(new.quant_method, method)
            new.quant_method = method
        # A module that ranks do not share has no rank, as vLLM has it in InternViT.
        # With `--mm-encoder-tp-mode data`, other encoders of vLLM name it anyway.
        if isinstance(new, ReplicatedLinear):
            new.tp_rank, new.tp_size = 0, 1
            new.update_param_tp_status()
        elif getattr(new, "tp_size", None) == 1 and vars(new).get("tp_rank"):
            new.tp_rank = 0
        return new

    def _built(
        self, native: type[CompiledEncoder], hf_config: Any, name: str
    ) -> CompiledEncoder:
        config = self.vllm_config.with_hf_config(hf_config)
        model_config = self.vllm_config.model_config
        if hasattr(model_config.hf_config, "quantization_config"):
            # The checkpoint is quantised, but stock builds this tower without a
            # quant_config, so ours must do the same.
            config.quant_config = None
        return native(vllm_config=config, prefix=name)

    def _note(self, stock: object, ours: object) -> None:
        self.report.changes[f"{type(stock).__name__} -> {type(ours).__name__}"] += 1


def _layer_for(module: nn.Module) -> type[nn.Module] | None:
    choices = (attention_for, convolution_for, layer_norm_for, unranked_for)
    return next((ours for choose in choices if (ours := choose(module))), None)


def in_place_of(stock: object, cls: type) -> Any:
    """Returns an object of class `cls` with all attributes of `stock`, shared."""
    new: Any = object.__new__(cls)
    object.__setattr__(new, "__dict__", stock.__dict__)
    return new
