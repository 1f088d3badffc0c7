# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny MiniCPM-o checkpoint, and Hugging Face's audio encoder with its weights."""

import json
from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import hf_encoder, read_weights
from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    qwen_generation_config,
    random_weights,
    save_checkpoint,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
    "<image>",
    "</image>",
    "<slice>",
    "</slice>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|spk_bos|>",
    "<|spk_eos|>",
)
VOCAB_SIZE = 320

# By these names vLLM's processor asks the tokenizer for them.
NAMED_TOKENS = {
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "spk_start": "<|spk_bos|>",
    "spk_end": "<|spk_eos|>",
}

HIDDEN = 128  # of the text model and of the encoder: four heads of 32 in both
VISION_HIDDEN = 64
POSITIONS = 1500  # of 30 s of speech, as published
QUERIES = 64  # tokens of a picture

# Version -> the text model, and how many tokens become an embedding.
VERSIONS = {"2.6": ("Qwen2", 2), "4.5": ("Qwen3", 5)}

# Hugging Face's prefixes -> those of openbmb/MiniCPM-o-2_6.
PUBLISHED_AUDIO = {"": "apm."}
PUBLISHED_TEXT = {"": "llm."}
PUBLISHED_VISION = {"vision_model.": "vpm.", "": "vpm."}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}"
    "{% else %}(<audio>./</audio>){% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Neither vLLM nor transformers has these two classes; the published ones come with the
# checkpoint as well.
CONFIG_MODULE = "configuration_minicpm"
CONFIG_CODE = '''\
"""Stands in for the config class that is published with MiniCPM-o."""

from transformers import {text}Config, SiglipVisionConfig, WhisperConfig


class MiniCPMOConfig({text}Config):
    model_type = "minicpmo"

    def __init__(self, vision_config=None, audio_config=None, **kwargs):
        self.vision_config = SiglipVisionConfig(**(vision_config or {{}}))
        self.audio_config = WhisperConfig(**(audio_config or {{}}))
        super().__init__(**kwargs)
'''
PROCESSOR_MODULE = "processing_minicpmo"
PROCESSOR_CODE = '''\
"""Stands in for the image processor that is published with MiniCPM-o.

It tells how many tokens a picture has, but takes none.
"""

from transformers.image_processing_utils import BaseImageProcessor


class MiniCPMVImageProcessor(BaseImageProcessor):
    def __init__(
        self, max_slice_nums=9, image_feature_size=64, version=2.6, **kwargs
    ):
        super().__init__(**kwargs)
        self.max_slice_nums = max_slice_nums
        self.image_feature_size = image_feature_size
        self.version = version

    def get_sliced_grid(self, image_size, max_slice_nums, nerver_split=False):
        return None

    def get_slice_image_placeholder(
        self, image_size, image_idx=0, max_slice_nums=None, use_image_id=None
    ):
        return "<image>" + "<unk>" * self.image_feature_size + "</image>"

    def preprocess(self, images, **kwargs):
        raise NotImplementedError("this checkpoint hears, but does not see")
'''


def tiny_minicpmo(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    version: str = "2.6",
) -> Path:
    """Writes a tiny MiniCPM-o checkpoint: two text layers, 80 mel bins.

    As published, the classes of the config and of the image processor are Python files
    of the checkpoint, so an engine needs `trust_remote_code`. Here those files are
    stand-ins, and pictures cannot be processed. Still an engine must allow one: without
    `"image": 1` in its limits vLLM makes no room for audio. So that it does not try one
    at the start, it needs `skip_mm_profiling` as well. The weights of the vision tower
    are there; those of the voice that speaks answers are not. The processor is vLLM's.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: audio encoder layers, at least 1.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.
        version: "2.6", or "4.5": another text model, and five tokens to an embedding.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 1, or there is no such version.
    """
    import transformers
    from transformers import SiglipVisionModel, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

    check_depth(depth)
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {list(VERSIONS)}, found {version!r}")
    text, _ = VERSIONS[version]
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{CONFIG_MODULE}.py").write_text(CONFIG_CODE.format(text=text))
    (path / f"{PROCESSOR_MODULE}.py").write_text(PROCESSOR_CODE)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(path, vocab, depth, dtype, version)
    text_model = getattr(transformers, f"{text}ForCausalLM")
    vision_shapes = parameter_shapes(
        SiglipVisionModel, config.vision_config, PUBLISHED_VISION
    )
    shapes = {
        **parameter_shapes(WhisperEncoder, config.audio_config, PUBLISHED_AUDIO),
        **parameter_shapes(text_model, config, PUBLISHED_TEXT),
        # Published without the pooling head.
        **{k: v for k, v in vision_shapes.items() if not k.startswith("vpm.head.")},
        **_resampler_shapes(),
        "audio_projection_layer.linear1.weight": (HIDDEN, HIDDEN),
        "audio_projection_layer.linear1.bias": (HIDDEN,),
        "audio_projection_layer.linear2.weight": (HIDDEN, HIDDEN),
        "audio_projection_layer.linear2.bias": (HIDDEN,),
    }
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    weights["apm.embed_positions.weight"] = sinusoids(POSITIONS, HIDDEN).to(dtype)
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.startswith("llm.") and name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
            tensor *= 4
    answer_in_visible_characters(weights["llm.lm_head.weight"], vocab)

    generation_config = qwen_generation_config(vocab)
    # One file, preprocessor_config.json, is the feature extractor's and the image
    # processor's.
    preprocessor = WhisperFeatureExtractor(
        image_processor_type="MiniCPMVImageProcessor",
        auto_map={"AutoImageProcessor": f"{PROCESSOR_MODULE}.MiniCPMVImageProcessor"},
        max_slice_nums=9,
        image_feature_size=QUERIES,
        version=float(version),
    )
    save_checkpoint(
        path,
        parts=[config, generation_config, preprocessor, _tokenizer(vocab)],
        weights=weights,
    )
    # transformers writes these names where it does not look for them.
    file = path / "tokenizer_config.json"
    tokenizer_config = json.loads(file.read_text()) | {
        "extra_special_tokens": NAMED_TOKENS
    }
    file.write_text(json.dumps(tokenizer_config, indent=2))
    processor_config = {"processor_class": "MiniCPMOProcessor"}
    (path / "processor_config.json").write_text(json.dumps(processor_config, indent=2))
    return path


def minicpmo_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns what the chat template makes of one user turn: audios, then text.

    Args:
        text: the user's words.
        audios: audio placeholders.
    """
    placeholders = "(<audio>./</audio>)" * audios
    return f"<|im_start|>user\n{placeholders}{text}<|im_end|>\n<|im_start|>assistant\n"


def load_hf_minicpmo_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Whisper encoder with these weights.

    Called with log-mel features [items, 80, 3000] it gives `.last_hidden_state` [items,
    1500, hidden]. MiniCPM-o's own masks attention besides: each second hears itself and
    what came before. This one masks nothing.

    Args:
        path: a directory that `tiny_minicpmo` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = AutoConfig.from_pretrained(path, trust_remote_code=True).audio_config
    weights = read_weights(path, "apm.")
    return hf_encoder(WhisperEncoder, config, weights, dtype)


def _config(
    path: Path, vocab: dict[str, int], depth: int, dtype: torch.dtype, version: str
) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = f"{CONFIG_MODULE}.MiniCPMOConfig"
    end = vocab["<|endoftext|>"]
    return get_class_from_dynamic_module(reference, str(path))(
        architectures=["MiniCPMO"],
        auto_map={"AutoConfig": reference},
        version=version,
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HIDDEN // 4,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=vocab["<|im_end|>"],
        pad_token_id=end,
        image_size=448,
        query_num=QUERIES,
        drop_vision_last_layer=False,
        audio_chunk_length=1.0,
        audio_pool_step=VERSIONS[version][1],
        vision_config={
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 2 * VISION_HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 980,
            "patch_size": 14,
        },
        audio_config={
            "num_mel_bins": 80,
            "d_model": HIDDEN,
            "encoder_layers": depth,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 4 * HIDDEN,
            "max_source_positions": POSITIONS,
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "decoder_start_token_id": end,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        dtype=dtype,
    )


def _resampler_shapes() -> dict[str, tuple[int, ...]]:
    norms = [
        f"{norm}.{part}"
        for norm in ("ln_q", "ln_kv", "ln_post")
        for part in ("weight", "bias")
    ]
    shapes: dict[str, tuple[int, ...]] = {
        "query": (QUERIES, HIDDEN),
        "kv_proj.weight": (HIDDEN, VISION_HIDDEN),
        "attn.in_proj_weight": (3 * HIDDEN, HIDDEN),
        "attn.in_proj_bias": (3 * HIDDEN,),
        "attn.out_proj.weight": (HIDDEN, HIDDEN),
        "attn.out_proj.bias": (HIDDEN,),
        "proj": (HIDDEN, HIDDEN),
        **dict.fromkeys(norms, (HIDDEN,)),
    }
    return {f"resampler.{name}": shape for name, shape in shapes.items()}


def _tokenizer(vocab: dict[str, int]) -> Any:
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=NAMED_TOKENS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    return tokenizer
