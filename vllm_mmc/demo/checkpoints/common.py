# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the builders of all families share: vocabulary, weights, saving, loading."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

NUM_BYTES = 256
WEIGHTS_FILE = "model.safetensors"

# Spread of each kind of parameter. Linear layers keep the scale of their input
# (standard deviation 1 / sqrt(fan-in)); norms and biases are far enough from 1 and 0
# that a weight of the wrong layer changes the result visibly.
NORM_SPREAD = 0.25
BIAS_SPREAD = 0.1


def check_depth(depth: int, least: int = 1) -> None:
    """Raises ValueError if an encoder of `depth` layers is too shallow."""
    if depth < least:
        raise ValueError(f"depth must be at least {least}, got {depth}")


def byte_level_vocab(special_tokens: Sequence[str]) -> dict[str, int]:
    """Returns a byte-level BPE vocabulary without merges.

    Args:
        special_tokens: in the order of their ids, which start at 256.

    Returns:
        token -> id: one token per byte (ids 0 to 255), so that every text can be
        tokenized, then the special tokens.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet())
    assert len(tokens) == NUM_BYTES
    return {token: i for i, token in enumerate([*tokens, *special_tokens])}


def printable_ids(vocab: Mapping[str, int]) -> list[int]:
    """Returns the ids of the tokens that are one visible ASCII character."""
    return [i for token, i in vocab.items() if len(token) == 1 and "!" <= token <= "~"]


def qwen_generation_config(vocab: Mapping[str, int]) -> Any:
    """Returns how Qwen answers here: greedily, to the end of its turn."""
    from transformers import GenerationConfig

    end = vocab["<|endoftext|>"]
    return GenerationConfig(
        do_sample=False, pad_token_id=end, eos_token_id=[vocab["<|im_end|>"], end]
    )


def random_weights(
    shapes: Mapping[str, Sequence[int]], *, seed: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Draws one random tensor per parameter name.

    The draw depends on `seed` and the name alone: layers differ from each other, and
    a checkpoint with more layers has the same weights in the layers that both have.

    Args:
        shapes: published parameter name -> shape.
        seed: same seed, same values.
        dtype: of the result; values are drawn in float32 and then rounded.
    """
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        values = torch.randn(tuple(shape), generator=generator)
        if name.endswith(".bias"):
            values *= BIAS_SPREAD
        elif len(shape) < 2:
            values = 1 + NORM_SPREAD * values
        elif "embed_tokens" not in name:
            values /= values[0].numel() ** 0.5
        weights[name] = values.to(dtype)
    return weights


def answer_in_visible_characters(
    lm_head: torch.Tensor, vocab: Mapping[str, int]
) -> None:
    """Zeroes, in place, the rows of all tokens but the visible ASCII characters.

    Greedy answers are then readable and never end with a special token.
    """
    hushed = torch.ones(len(lm_head), dtype=torch.bool)
    hushed[printable_ids(vocab)] = False
    lm_head[hushed] = 0


def parameter_shapes(
    model_class: type[nn.Module], config: object, renames: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Returns published parameter name -> shape of a Hugging Face model.

    Args:
        model_class: the Hugging Face class; built on the meta device.
        config: its config.
        renames: prefix of Hugging Face's name -> prefix of the published name. The
            first prefix that fits wins.
    """
    with torch.device("meta"):
        state = model_class(config).state_dict()
    return {
        rename(name, renames): tuple(tensor.shape) for name, tensor in state.items()
    }


def rename(name: str, prefixes: Mapping[str, str]) -> str:
    """Returns `name` with the first prefix that fits replaced."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def save_checkpoint(
    path: Path | str,
    *,
    parts: Iterable[Any],
    weights: Mapping[str, torch.Tensor],
    name: str = WEIGHTS_FILE,
) -> Path:
    """Writes a checkpoint directory, over an older one if there is one.

    Args:
        path: the directory; made if it does not exist.
        parts: what has `save_pretrained`: config, generation config, processor, and
            once more the processor's feature extractor or image processor, because
            preprocessor_config.json is published.
        weights: published parameter name -> tensor.
        name: of their file.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for part in parts:
        part.save_pretrained(path)
    save_file(dict(sorted(weights.items())), path / name, {"format": "pt"})
    return path
