# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints described as data, and the one function that writes them.

A recipe names the real config class, the tokens, the real processor and how a prompt
looks; `write` makes of it a directory that vLLM's own class loads as it loads the
published checkpoint: random weights under the published names.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_mmc.demo import media
from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    random_weights,
    save_checkpoint,
)

VOCAB_SIZE = 384  # the bytes, the special tokens, then unused rows
HIDDEN = 128  # of the text model
VISION_HIDDEN = 64

Ids = Mapping[str, int]
Shapes = Mapping[str, Sequence[int]]

OUTPUT_LAYERS = ("lm_head.weight", "embed_tokens.weight")
TEXT = r"^(model\.)?(language_model|text_model|layers|llm)\..*"
ATTENTION = TEXT + r"(self_attn\.(q_proj|k_proj)|q_norm|k_norm)\.weight$"


LLAMA_TOKENS = ("<s>", "</s>", "<unk>", "<pad>")
LLAMA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


@dataclass(frozen=True)
class Recipe:
    """One kind of checkpoint, and how to ask it.

    Attributes:
        title: its name in texts.
        architecture: its name in vLLM's registry.
        config: token -> id in, a config with `save_pretrained` or a dict out.
        special_tokens: beside the 256 bytes, in the order of their ids.
        processor: tokenizer in, what writes the processor's files out, as one object or
            several. None writes the tokenizer alone.
        template: of a prompt, with "{media}" and "{text}".
        placeholder: of one item in a prompt; "{i}" counts from 1.
        hf_class: the class whose parameters the checkpoint has, in transformers; by
            default the architecture.
        shapes: config in, published name -> shape out; for parameters that no class of
            transformers has, or instead of `hf_class` if that is "".
        renames: pattern of a name in transformers -> published name; every one that
            matches is applied, in this order.
        leave_out: pattern of published names that are not in the checkpoint.
        scales: pattern of published names -> factor on top of the usual spread. By
            default queries and keys of the text model are sharpened, so that an answer
            depends on the picture.
        mend: changes the weights in place, given the config.
        named_tokens: attribute of the tokenizer -> token, for processors that ask it.
        roles: "bos_token" and the like -> token.
        tokenizer_class: of transformers, as its published name.
        files: name -> text of further files.
        settings: name of a JSON file -> what it says, over what is written already.
        modality: "image" or "audio".
        samples: some requests: for each item (width, height) or seconds.
        text: of a request.
        engine_args: beside `default_engine_args`.
        audio_rate: samples per second of what is sent.
        cpu_fault: why vLLM's own class fails on CPU with this one; "" if it does not.
        mend_stock: sets that right for the life of this process.
    """

    title: str
    architecture: str
    config: Callable[[Ids], Any]
    special_tokens: Sequence[str]
    template: str
    placeholder: str
    processor: Callable[[Any], Any] | None = None
    hf_class: str | None = None
    shapes: Callable[[Any], Shapes] | None = None
    renames: Mapping[str, str] = field(default_factory=dict)
    leave_out: str = "(?!)"
    scales: Mapping[str, float] = field(default_factory=lambda: {ATTENTION: 2})
    mend: Callable[[dict[str, torch.Tensor], Any], None] = lambda weights, config: None
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=lambda: LLAMA_ROLES)
    tokenizer_class: str = "PreTrainedTokenizerFast"
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    modality: str = "image"
    samples: Sequence[Sequence[Any]] = (
        [(224, 224)],
        [(448, 336)],
        [(504, 588)],
        [(280, 280), (336, 224)],
    )
    text: str = "Who is this?"
    engine_args: Mapping[str, Any] = field(
        default_factory=lambda: {"limit_mm_per_prompt": {"image": 2}}
    )
    audio_rate: int = media.SPEECH_RATE
    cpu_fault: str = ""
    mend_stock: Callable[[], None] = lambda: None

    def write(self, path: Path | str, **kwargs: Any) -> Path:
        """Writes the checkpoint, as `write` does."""
        return write(self, path, **kwargs)

    def prompt(self, text: str, *, images: int = 0, audios: int = 0) -> str:
        """Returns one user turn: media, then text."""
        found = [self.placeholder.format(i=i + 1) for i in range(images + audios)]
        return self.template.format(media="".join(found), text=text)

    def request(self, items: Sequence[Any]) -> dict[str, Any]:
        """Returns what `LLM.generate` takes: real pictures or speech, and the text.

        Args:
            items: as in `samples`.
        """
        data: list[Any]
        if self.modality == "audio":
            rate = self.audio_rate
            data = [(media.speech(seconds, rate=rate), rate) for seconds in items]
        else:
            data = [media.photograph_at(*size) for size in items]
        prompt = self.prompt(self.text, **{f"{self.modality}s": len(items)})
        return {"prompt": prompt, "multi_modal_data": {self.modality: data}}

    def describe(self, item: Any) -> str:
        """Returns "504 x 588 photograph" or "30 s of speech"."""
        if self.modality == "audio":
            return f"{item:g} s of speech"
        return "{} x {} photograph".format(*item)


QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
QWEN_TEMPLATE = "<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"


def text_sizes(**overrides: Any) -> dict[str, Any]:
    """Returns the sizes of a text model of two layers, by their usual names.

    Args:
        overrides: further values, or others for these.
    """
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    } | overrides


def vision_sizes(**overrides: Any) -> dict[str, Any]:
    """Returns the sizes of a vision tower of three layers, the same way."""
    return {
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": 172,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    } | overrides


def write(
    recipe: Recipe,
    path: Path | str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny checkpoint directory.

    Args:
        recipe: what to write.
        path: the directory; an older checkpoint there is written over.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.

    Returns:
        `path`.
    """
    from transformers import GenerationConfig

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in recipe.files.items():
        (path / name).write_text(text)
    vocab = byte_level_vocab(recipe.special_tokens)
    config = recipe.config(vocab)
    settings = {
        "architectures": [recipe.architecture],
        "dtype": str(dtype).removeprefix("torch."),
    }
    parts = []
    if isinstance(config, dict):
        (path / "config.json").write_text(json.dumps(config | settings, indent=2))
    else:
        config.architectures = settings["architectures"]
        config.dtype = dtype
        parts.append(config)
    weights = random_weights(_shapes(recipe, config), seed=seed, dtype=dtype)
    for pattern, factor in recipe.scales.items():
        for name, tensor in weights.items():
            if re.search(pattern, name):
                tensor *= factor
    _quiet(weights, vocab)
    recipe.mend(weights, config)
    parts.append(
        GenerationConfig(
            do_sample=False,
            eos_token_id=vocab[recipe.roles["eos_token"]],
            pad_token_id=vocab[recipe.roles["pad_token"]],
        )
    )
    tokenizer = _tokenizer(recipe, vocab)
    processor = recipe.processor(tokenizer) if recipe.processor else tokenizer
    parts += processor if isinstance(processor, list) else [processor]
    for name in ("image_processor", "feature_extractor"):
        if part := getattr(processor, name, None):
            parts.append(part)
    save_checkpoint(path, parts=parts, weights=weights)
    # transformers writes these names where it does not look for them.
    others = {k: v for k, v in recipe.named_tokens.items() if not k.endswith("_token")}
    named = {"extra_special_tokens": others} if others else {}
    changes = {**recipe.settings, "tokenizer_config.json": named}
    for name, change in changes.items():
        file = path / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **change}, indent=2))
    return path


def _shapes(recipe: Recipe, config: Any) -> Shapes:
    """Returns published parameter name -> shape."""
    found: dict[str, Sequence[int]] = {}
    if recipe.hf_class != "":
        import transformers

        model_class = getattr(transformers, recipe.hf_class or recipe.architecture)
        for name, shape in published_shapes(model_class, config).items():
            for old, new in recipe.renames.items():
                name = re.sub(old, new, name)
            found[name] = shape
    if recipe.shapes:
        found |= recipe.shapes(config)
    return {
        name: shape
        for name, shape in found.items()
        if not re.search(recipe.leave_out, name)
    }


def published_shapes(model_class: type[nn.Module], config: Any) -> Shapes:
    """Returns published name -> shape, by transformers' own table of old names.

    Args:
        model_class: of transformers; built on the meta device.
        config: its config.
    """
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = model_class(config)
    state = model.state_dict()
    for tied in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(tied, None)
    published = revert_weight_conversion(model, state)
    return {name: tuple(tensor.shape) for name, tensor in published.items()}


def prefixed(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Returns the shapes with `prefix` before each name."""
    return {prefix + name: tuple(shape) for name, shape in shapes.items()}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a linear layer with a bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _quiet(weights: Mapping[str, torch.Tensor], vocab: Ids) -> None:
    """Lets the output layer answer in visible characters."""
    for end in OUTPUT_LAYERS:
        for name in weights:
            if name.endswith(end):
                answer_in_visible_characters(weights[name], vocab)
                return


def _tokenizer(recipe: Recipe, vocab: dict[str, int]) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    bpe = Tokenizer(BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    bpe.decoder = decoders.ByteLevel()
    tokenizer = getattr(transformers, recipe.tokenizer_class)(
        tokenizer_object=bpe,
        model_max_length=8192,
        extra_special_tokens=list(recipe.special_tokens),
        chat_template=_chat_template(recipe),
        **recipe.roles,
        **{k: v for k, v in recipe.named_tokens.items() if k.endswith("_token")},
    )
    return tokenizer


def _chat_template(recipe: Recipe) -> str:
    """Returns a chat template that makes the same of a user turn as `prompt`."""
    start, rest = recipe.template.split("{media}")
    between, end = map(_literal, rest.split("{text}"))
    placeholder = "{{ loop.index }}".join(
        _literal(part) for part in recipe.placeholder.split("{i}")
    )
    return (
        "{% for message in messages %}"
        + _literal(start)
        + "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] != 'text' %}"
        + placeholder
        + "{% endfor %}"
        + between
        + "{% for part in message['content'] if part['type'] == 'text' %}"
        "{{ part['text'] }}{% endfor %}{% endif %}" + end + "{% endfor %}"
    )


def _literal(text: str) -> str:
    """Returns the text for a template, safe from the newlines that Jinja drops."""
    return "{{ " + json.dumps(text) + " }}"
