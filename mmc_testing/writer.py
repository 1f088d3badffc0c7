# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of the tests: what is asked of a checkpoint beside what `vllm_mmc.demo` asks.

The class and the function that writes are in `vllm_mmc.demo.writer`, because the demo
of the wheel needs them. Here are the sizes and shapes that recipes share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from vllm_mmc.demo import writer
from vllm_mmc.demo.writer import (
    ATTENTION,
    HIDDEN,
    LLAMA_ROLES,
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    VISION_HIDDEN,
    Ids,
    Shapes,
    published_shapes,
    write,
)

__all__ = [
    "ATTENTION",
    "HIDDEN",
    "LLAMA_ROLES",
    "LLAMA_TOKENS",
    "QWEN_ROLES",
    "QWEN_TEMPLATE",
    "QWEN_TOKENS",
    "VISION_HIDDEN",
    "VOCAB_SIZE",
    "Ids",
    "Recipe",
    "Shapes",
    "linear",
    "prefixed",
    "published",
    "published_shapes",
    "remote_code",
    "resampler_shapes",
    "shapes_of",
    "text_sizes",
    "tokens",
    "vision_sizes",
    "write",
]

VOCAB_SIZE = 384  # the bytes, the special tokens, then unused rows
PUBLISHED = Path(__file__).parent / "remote_code"
LLAMA_TOKENS = ("<s>", "</s>", "<unk>", "<pad>")


@dataclass(frozen=True)
class Recipe(writer.Recipe):
    """One kind of checkpoint, and what the tests know of it.

    Attributes:
        hf_encoders: modality -> (checkpoint, dtype=float32), which loads Hugging Face's
            encoder with the checkpoint's weights.
        regions: names of the compiled classes, for the tests that count them.
        backbones_seen: how often vLLM counts the text model when it compiles it: a
            class that has a decorated parent is counted twice.
        sharded_inputs: what `embed_multimodal` gets in the test of two ranks, if the
            family is tested there.
        serves: "transcriptions", "chat" or "", of `/v1`, for the test of servers.
        cpu_fault: why vLLM's own class fails on CPU with this one; "" if it does not.
        mend_stock: sets that right for the life of this process.
        packages: that the engine needs, of those that `make setup` puts beside `.venv`.
    """

    hf_encoders: Mapping[str, Callable[..., nn.Module]] = field(default_factory=dict)
    regions: Sequence[str] = ()
    backbones_seen: int = 1
    sharded_inputs: Callable[[], dict[str, Any]] | None = None
    serves: str = ""
    cpu_fault: str = ""
    mend_stock: Callable[[], None] = lambda: None
    packages: Sequence[str] = ()

    @classmethod
    def of(cls, recipe: writer.Recipe, **known: Any) -> "Recipe":
        """Returns a recipe of the wheel with what the tests know of it."""
        return cls(**{f.name: getattr(recipe, f.name) for f in fields(recipe)}, **known)


def text_sizes(**overrides: Any) -> dict[str, Any]:
    """Returns the sizes of a text model of two layers, by their usual names.

    Args:
        overrides: further values, or others for these.
    """
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 8192}
    sizes |= {"head_dim": 32, "tie_word_embeddings": False}
    return writer.text_sizes(**sizes | overrides)


def vision_sizes(**overrides: Any) -> dict[str, Any]:
    """Returns the sizes of a vision tower of three layers, the same way."""
    return {
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": 172,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    } | overrides


def tokens(text: str) -> tuple[str, ...]:
    """Returns the special tokens that a text has, parted by spaces."""
    return tuple(text.split())


def prefixed(prefix: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes, or weights, with `prefix` before each name."""
    return {prefix + name: shape for name, shape in shapes.items()}


def shapes_of(*parts: tuple[str, str, str]) -> Callable[[Any], dict[str, Any]]:
    """Returns what makes the shapes of a checkpoint of a config that has several.

    Args:
        parts: prefix of published names, class of transformers, attribute of the
            config.
    """

    def shapes(config: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for prefix, model_class, name in parts:
            part = published_shapes(model_class, getattr(config, name))
            found |= prefixed(prefix, part)
        return found

    return shapes


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a linear layer with a bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def resampler_shapes(queries: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of MiniCPM's resampler.

    Args:
        queries: tokens of a picture.
    """
    norms = ("ln_q", "ln_kv", "ln_post")
    shapes: dict[str, tuple[int, ...]] = {
        "query": (queries, HIDDEN),
        "kv_proj.weight": (HIDDEN, VISION_HIDDEN),
        "attn.in_proj_weight": (3 * HIDDEN, HIDDEN),
        "attn.in_proj_bias": (3 * HIDDEN,),
        **linear("attn.out_proj", HIDDEN, HIDDEN),
        "proj": (HIDDEN, HIDDEN),
        **{f"{norm}.{end}": (HIDDEN,) for norm in norms for end in ("weight", "bias")},
    }
    return prefixed("resampler.", shapes)


def remote_code(*names: str) -> dict[str, str]:
    """Returns name -> text of files that stand in for what is published."""
    return {name: (PUBLISHED / name).read_text() for name in names}


def published(name: str) -> str:
    """Returns a published chat template, without the newline at its end."""
    return (PUBLISHED / name).read_text().removesuffix("\n")
