# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints described as data, and the one function that writes them.

A recipe names the real config class, the tokens, the real processor and how a prompt
looks; `write` makes of it a directory that vLLM's own class loads as it loads the
published checkpoint: random weights under the published names.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_mmc.demo import media

NUM_BYTES = 256
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

# Spread of each kind of parameter. Linear layers keep the scale of their input
# (standard deviation 1 / sqrt(fan-in)); norms and biases are far enough from 1 and 0
# that a weight of the wrong layer changes the result visibly.
NORM_SPREAD = 0.25
BIAS_SPREAD = 0.1

Ids = Mapping[str, int]
Shapes = Mapping[str, Sequence[int]]

OUTPUT_LAYERS = ("lm_head.weight", "embed_tokens.weight")
TEXT = r"^(model\.)?(language_model|text_model|layers|llm)\..*"
ATTENTION = TEXT + r"(self_attn\.(q_proj|k_proj)|q_norm|k_norm)\.weight$"

LLAMA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
# Greedily, to the end of its turn.
QWEN_GENERATION = {
    "pad_token_id": "<|endoftext|>",
    "eos_token_id": ("<|im_end|>", "<|endoftext|>"),
}
QWEN_TEMPLATE = "<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

VOCAB_SIZE = 320  # the bytes, the special tokens, then unused rows
HIDDEN = 128  # of text models, and of the embeddings that encoders give: heads of 32
VISION_HIDDEN = 64


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
        "max_position_embeddings": 32768,
    } | overrides


def qwen_vision_sizes(depth: int, **overrides: Any) -> dict[str, Any]:
    """Returns the sizes of Qwen's vision encoder of so many blocks, the same way."""
    return {
        "depth": depth,
        "hidden_size": VISION_HIDDEN,
        "num_heads": 4,
        "intermediate_size": 172,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN,
    } | overrides


def byte_level_tokenizer(recipe: "Recipe", vocab: Ids, **kwargs: Any) -> Any:
    """Returns a tokenizer without merges, of the recipe's `tokenizer_class`.

    Args:
        recipe: whose tokens and roles it has.
        vocab: token -> id.
        kwargs: of the split before the bytes; by default there is none.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    bpe = Tokenizer(BPE(vocab=dict(vocab), merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, **({"use_regex": False} | kwargs)
    )
    bpe.decoder = decoders.ByteLevel()
    template = recipe.chat_template
    if template is None:
        template = _chat_template(recipe)
    return getattr(transformers, recipe.tokenizer_class)(
        tokenizer_object=bpe,
        model_max_length=recipe.max_tokens,
        extra_special_tokens=list(recipe.special_tokens),
        **recipe.roles,
        **({"chat_template": template} if template else {}),
        **{k: v for k, v in recipe.named_tokens.items() if k.endswith("_token")},
    )


def qwen_tokenizer(recipe: "Recipe", vocab: Ids) -> Any:
    """Returns Qwen's tokenizer, which splits words as the published one does."""
    from transformers import Qwen2Tokenizer

    named = recipe.named_tokens
    tokenizer = Qwen2Tokenizer(
        vocab=dict(vocab),
        merges=[],
        model_max_length=recipe.max_tokens,
        **recipe.roles,
        **({"extra_special_tokens": dict(named)} if named else {}),
        **({"chat_template": recipe.chat_template} if recipe.chat_template else {}),
    )
    tokenizer.add_tokens(list(recipe.special_tokens), special_tokens=True)
    return tokenizer


@dataclass(frozen=True)
class Recipe:
    """One kind of checkpoint, and how to ask it.

    Attributes:
        title: its name in texts.
        architecture: its name in vLLM's registry.
        config: token -> id in, a config with `save_pretrained` or a dict out; of
            (token -> id, depth, dtype) if there is a `least_depth`.
        special_tokens: beside the 256 bytes, in the order of their ids.
        least_depth: of the encoder, in layers, if its depth can be chosen; else 0.
        vocab: returns token -> id, if ids are not in that order.
        tokenizer: recipe, token -> id in; a tokenizer out, or None for no tokenizer.
        processor: tokenizer in, what writes the processor's files out, as one object or
            several. None writes the tokenizer alone.
        template: of a prompt, with "{media}" and "{text}".
        placeholder: of one item in a prompt; "{i}" counts from 1. For several
            modalities one each, in the order of a prompt.
        encode: prompt -> its tokens, where no text names the placeholders.
        chat_template: of the tokenizer. By default it is made of the two above; "" is
            none.
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
        sinusoids: pattern of the tables of positions, which are not random.
        output_layers: ends of published names; the first one that is there answers in
            visible characters.
        mend: changes the weights in place, given the config.
        named_tokens: attribute of the tokenizer -> token, for processors that ask it.
        roles: "bos_token" and the like -> token.
        generation: "eos_token_id" and the like -> token or tokens, for
            generation_config.json; by default those of `roles`, and {} for no file.
        tokenizer_class: of transformers, as its published name.
        max_tokens: that the tokenizer gives without a warning.
        files: name -> text of further files.
        settings: name of a JSON file -> what it says, over what is written already.
        config_file: one that is not config.json has no architecture and no dtype.
        weights_file: of all weights.
        finish: (directory, depth=, seed=, dtype=), writes what else there is.
        modality: "image" or "audio".
        samples: some requests: for each item (width, height) or seconds.
        text: of a request.
        engine_args: beside `default_engine_args`.
        pooling: `PoolingParams` of a request, if the engine pools.
        audio_rate: samples per second of what is sent.
        mend_model: sets what stock's class leaves as it finds the memory.
    """

    title: str
    architecture: str
    config: Callable[..., Any]
    template: str
    placeholder: str | Mapping[str, str]
    special_tokens: Sequence[str] = ()
    least_depth: int = 0
    vocab: Callable[[], dict[str, int]] | None = None
    tokenizer: Callable[["Recipe", Ids], Any] = byte_level_tokenizer
    processor: Callable[[Any], Any] | None = None
    encode: Callable[[str], list[int]] | None = None
    chat_template: str | None = None
    hf_class: str | None = None
    shapes: Callable[[Any], Shapes] | None = None
    renames: Mapping[str, str] = field(default_factory=dict)
    leave_out: str = "(?!)"
    scales: Mapping[str, float] = field(default_factory=lambda: {ATTENTION: 2})
    sinusoids: str = "(?!)"
    output_layers: Sequence[str] = OUTPUT_LAYERS
    mend: Callable[[dict[str, torch.Tensor], Any], None] = lambda weights, config: None
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=lambda: LLAMA_ROLES)
    generation: Mapping[str, str | Sequence[str]] | None = None
    tokenizer_class: str = "PreTrainedTokenizerFast"
    max_tokens: int = 8192
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config_file: str = CONFIG_FILE
    weights_file: str = WEIGHTS_FILE
    finish: Callable[..., None] = lambda path, **kwargs: None
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
    pooling: Mapping[str, Any] = field(default_factory=dict)
    audio_rate: int = media.SPEECH_RATE
    mend_model: Callable[[Any], None] = lambda model: None

    def write(self, path: Path | str, **kwargs: Any) -> Path:
        """Writes the checkpoint, as `write` does."""
        return write(self, path, **kwargs)

    def prompt(self, text: str = "", **counts: int) -> str | list[int]:
        """Returns one user turn, as text or as tokens.

        Args:
            text: the user's words.
            counts: of placeholders: `images=2`, `audios=1`, `videos=1`.
        """
        known = self.placeholder
        if isinstance(known, str):
            known = {self.modality: known}
        asked = {name for name, count in counts.items() if count}
        if unknown := asked - {f"{name}s" for name in known}:
            raise ValueError(f"no placeholder for {sorted(unknown)} in {self.title}")
        found = [
            placeholder.format(i=i + 1)
            for name, placeholder in known.items()
            for i in range(counts.get(f"{name}s", 0))
        ]
        prompt = self.template.format(media="".join(found), text=text)
        return self.encode(prompt) if self.encode else prompt

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
        return {
            "prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt,
            "multi_modal_data": {self.modality: data},
        }

    def describe(self, item: Any) -> str:
        """Returns "504 x 588 photograph" or "30 s of speech"."""
        if self.modality == "audio":
            return f"{item:g} s of speech"
        return "{} x {} photograph".format(*item)


def write(
    recipe: Recipe,
    path: Path | str,
    *,
    depth: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny checkpoint directory.

    Args:
        recipe: what to write.
        path: the directory; an older checkpoint there is written over.
        depth: layers of the encoder, of each if there are two; by default 4 where it
            can be chosen.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.

    Returns:
        `path`.

    Raises:
        ValueError: if the encoder cannot have that depth.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in recipe.files.items():
        (path / name).write_text(text)
    vocab = recipe.vocab() if recipe.vocab else byte_level_vocab(recipe.special_tokens)
    config = _config(recipe, vocab, depth, dtype)
    for part in [config, *_parts(recipe, vocab)]:
        if isinstance(part, dict):
            (path / recipe.config_file).write_text(json.dumps(part, indent=2))
        else:
            part.save_pretrained(path)
    changes = dict(recipe.settings)
    # transformers writes these names where it does not look for them.
    others = {k: v for k, v in recipe.named_tokens.items() if not k.endswith("_token")}
    if others:
        changes["tokenizer_config.json"] = {"extra_special_tokens": others}
    for name, change in changes.items():
        file = path / name
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **change}, indent=2))
    weights = _weights(recipe, vocab, config, seed, dtype)
    in_order = dict(sorted(weights.items()))
    save_file(in_order, path / recipe.weights_file, {"format": "pt"})
    recipe.finish(path, depth=depth, seed=seed, dtype=dtype)
    return path


def _config(recipe: Recipe, vocab: Ids, depth: int | None, dtype: torch.dtype) -> Any:
    if not recipe.least_depth:
        if depth is not None:
            raise ValueError(f"the depth of {recipe.title} is fixed, got {depth}")
        config = recipe.config(vocab)
    else:
        depth = 4 if depth is None else depth
        if depth < recipe.least_depth:
            raise ValueError(
                f"depth must be at least {recipe.least_depth}, got {depth}"
            )
        config = recipe.config(vocab, depth, dtype)
    if not isinstance(config, dict):
        config.architectures = [recipe.architecture]
        config.dtype = dtype
    elif recipe.config_file == CONFIG_FILE:
        name = str(dtype).removeprefix("torch.")
        config |= {"architectures": [recipe.architecture], "dtype": name}
    return config


def _parts(recipe: Recipe, vocab: Ids) -> list[Any]:
    """Returns what writes the files of generation, tokenizer and processor."""
    from transformers import GenerationConfig

    parts: list[Any] = []
    generation = recipe.generation
    if generation is None:
        roles = {f"{name}_token": f"{name}_token_id" for name in ("eos", "pad")}
        generation = {key: recipe.roles[role] for role, key in roles.items()}
    if generation:
        ids = {
            key: vocab[of] if isinstance(of, str) else [vocab[token] for token in of]
            for key, of in generation.items()
        }
        parts.append(GenerationConfig(do_sample=False, **ids))
    tokenizer = recipe.tokenizer(recipe, vocab)
    processor = recipe.processor(tokenizer) if recipe.processor else tokenizer
    if processor is not None:
        parts += processor if isinstance(processor, list) else [processor]
    # Once more by themselves, because preprocessor_config.json is published.
    for name in ("image_processor", "feature_extractor"):
        if part := getattr(processor, name, None):
            parts.append(part)
    return parts


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


# ---------------------------------------------------------------- weights


def _weights(
    recipe: Recipe, vocab: Ids, config: Any, seed: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    weights = random_weights(_shapes(recipe, config), seed=seed, dtype=dtype)
    for name, tensor in weights.items():
        for pattern, factor in recipe.scales.items():
            if re.search(pattern, name):
                tensor *= factor
        if re.search(recipe.sinusoids, name):
            from transformers.models.whisper.modeling_whisper import sinusoids

            tensor.copy_(sinusoids(*tensor.shape))
    outputs = [n for end in recipe.output_layers for n in weights if n.endswith(end)]
    if outputs:
        answer_in_visible_characters(weights[outputs[0]], vocab)
    recipe.mend(weights, config)
    return weights


def _shapes(recipe: Recipe, config: Any) -> Shapes:
    """Returns published parameter name -> shape."""
    found: dict[str, Sequence[int]] = {}
    if recipe.hf_class != "":
        found |= published_shapes(recipe.hf_class or recipe.architecture, config)
    if recipe.shapes:
        found |= recipe.shapes(config)
    renamed = {}
    for name, shape in found.items():
        for old, new in recipe.renames.items():
            name = re.sub(old, new, name)
        if not re.search(recipe.leave_out, name):
            renamed[name] = shape
    return renamed


def published_shapes(model_class: type[nn.Module] | str, config: Any) -> Shapes:
    """Returns published name -> shape, by transformers' own table of old names.

    Args:
        model_class: of transformers, or its place there; built on the meta device.
        config: its config.
    """
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    if isinstance(model_class, str):
        found: type[nn.Module] = attrgetter(model_class)(transformers)
        model_class = found
    with torch.device("meta"):
        model = model_class(config)
    state = model.state_dict()
    for tied in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(tied, None)
    published = revert_weight_conversion(model, state)
    return {name: tuple(tensor.shape) for name, tensor in published.items()}


def random_weights(
    shapes: Shapes, *, seed: int, dtype: torch.dtype
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


def answer_in_visible_characters(lm_head: torch.Tensor, vocab: Ids) -> None:
    """Zeroes, in place, the rows of all tokens but the visible ASCII characters.

    Greedy answers are then readable and never end with a special token.
    """
    visible = [
        i for token, i in vocab.items() if len(token) == 1 and "!" <= token <= "~"
    ]
    hushed = torch.ones(len(lm_head), dtype=torch.bool)
    hushed[visible] = False
    lm_head[hushed] = 0


# ---------------------------------------------------------------- chat templates


def _chat_template(recipe: Recipe) -> str:
    """Returns a chat template that makes the same of a user turn as `prompt`."""
    start, rest = recipe.template.split("{media}")
    between, end = map(_literal, rest.split("{text}"))
    known = recipe.placeholder
    (placeholder,) = [known] if isinstance(known, str) else known.values()
    placeholder = "{{ loop.index }}".join(
        _literal(part) for part in placeholder.split("{i}")
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
