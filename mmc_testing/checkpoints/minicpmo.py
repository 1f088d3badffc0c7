# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny MiniCPM-o checkpoint: two text layers, 80 mel bins.

As published, the classes of the config and of the image processor are Python files of
the checkpoint, so an engine needs `trust_remote_code`. Here those files are stand-ins,
and pictures cannot be processed. The weights of the vision tower are there; those of
the voice that speaks answers are not. The processor is vLLM's.
"""

import importlib
from functools import partial
from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    HIDDEN,
    VOCAB_SIZE,
    WHISPER_ENCODER,
    HuggingFaceEncoder,
    qwen_chat_template,
    text_sizes,
    whisper_sizes,
    whisper_tokens,
)
from mmc_testing.writer import (
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    VISION_HIDDEN,
    Ids,
    Recipe,
    Shapes,
    linear,
    prefixed,
    published_shapes,
    remote_code,
    resampler_shapes,
)
from vllm_mmc.demo.writer import QWEN_GENERATION, qwen_tokenizer

QUERIES = 64  # tokens of a picture
CONFIG_MODULE = "configuration_minicpm"
PROCESSOR_MODULE = "processing_minicpmo"
PLACEHOLDER = "(<audio>./</audio>)"

# Version -> the text model, the stand-in of its config class, and how many tokens
# become an embedding.
VERSIONS = {
    "2.6": ("Qwen2ForCausalLM", "configuration_minicpmo_2_6", 2),
    "4.5": ("Qwen3ForCausalLM", "configuration_minicpmo_4_5", 5),
}


def _config(version: str, ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    _, module, pool_step = VERSIONS[version]
    config_class = importlib.import_module(f"mmc_testing.remote_code.{module}")
    end = ids["<|endoftext|>"]
    return config_class.MiniCPMOConfig(
        auto_map={"AutoConfig": f"{CONFIG_MODULE}.MiniCPMOConfig"},
        version=version,
        **text_sizes(head_dim=32, tie_word_embeddings=False),
        rope_theta=1e6,
        bos_token_id=end,
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=end,
        image_size=448,
        query_num=QUERIES,
        drop_vision_last_layer=False,
        audio_chunk_length=1.0,
        audio_pool_step=pool_step,
        vision_config={
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 2 * VISION_HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 980,
            "patch_size": 14,
        },
        audio_config=whisper_sizes(depth, num_mel_bins=80)
        | whisper_tokens(end, vocab_size=VOCAB_SIZE),
    )


def _shapes(version: str, config: Any) -> Shapes:
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    text = getattr(transformers, VERSIONS[version][0])
    vision = published_shapes(transformers.SiglipVisionModel, config.vision_config)
    return {
        **prefixed("apm.", published_shapes(WhisperEncoder, config.audio_config)),
        **prefixed("llm.", published_shapes(text, config)),
        **prefixed("vpm.", vision),
        **resampler_shapes(QUERIES),
        **linear("audio_projection_layer.linear1", HIDDEN, HIDDEN),
        **linear("audio_projection_layer.linear2", HIDDEN, HIDDEN),
    }


def _processor(version: str, tokenizer: Any) -> Any:
    """One file is the feature extractor's and the image processor's."""
    from transformers import WhisperFeatureExtractor

    name = "MiniCPMVImageProcessor"
    preprocessor = WhisperFeatureExtractor(
        image_processor_type=name,
        auto_map={"AutoImageProcessor": f"{PROCESSOR_MODULE}.{name}"},
        max_slice_nums=9,
        image_feature_size=QUERIES,
        version=float(version),
    )
    return [preprocessor, tokenizer]


def recipe(version: str = "2.6") -> Recipe:
    """Returns the recipe.

    Args:
        version: "2.6", or "4.5": another text model, and five tokens to an embedding.
    """
    code = remote_code(f"{VERSIONS[version][1]}.py")
    return Recipe(
        "MiniCPM-o",
        "MiniCPMO",
        config=partial(_config, version),
        least_depth=1,
        special_tokens=(
            *QWEN_TOKENS,
            "<unk>",
            "<image>",
            "</image>",
            "<slice>",
            "</slice>",
            "<|audio_start|>",
            "<|audio_end|>",
            "<|spk_bos|>",
            "<|spk_eos|>",
        ),
        tokenizer=qwen_tokenizer,
        processor=partial(_processor, version),
        template=QWEN_TEMPLATE,
        placeholder=PLACEHOLDER,
        chat_template=qwen_chat_template(PLACEHOLDER),
        roles=QWEN_ROLES | {"unk_token": "<unk>"},
        # By these names vLLM's processor asks the tokenizer for them.
        named_tokens={
            "im_start": "<image>",
            "im_end": "</image>",
            "slice_start": "<slice>",
            "slice_end": "</slice>",
            "audio_start": "<|audio_start|>",
            "audio_end": "<|audio_end|>",
            "spk_start": "<|spk_bos|>",
            "spk_end": "<|spk_eos|>",
        },
        generation=QWEN_GENERATION,
        max_tokens=32768,
        hf_class="",
        shapes=partial(_shapes, version),
        renames={r"^vpm\.vision_model\.": "vpm."},
        leave_out=r"^vpm\.head\.",  # published without the pooling head
        sinusoids=r"apm\.embed_positions",
        scales={r"^llm\..*[qk]_proj\.weight$": 4},
        files={
            f"{CONFIG_MODULE}.py": "".join(code.values()),
            **remote_code(f"{PROCESSOR_MODULE}.py"),
        },
        settings={"processor_config.json": {"processor_class": "MiniCPMOProcessor"}},
        modality="audio",
        # No two of different lengths: stock's then have other values than alone.
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="",
        # Without a picture allowed vLLM makes no room for audio, and this checkpoint
        # cannot see, so nothing may be profiled.
        engine_args={
            "limit_mm_per_prompt": {"audio": 2, "image": 1, "video": 0},
            "skip_mm_profiling": True,
            "trust_remote_code": True,
        },
        # encoder([items, 80, 3000]).last_hidden_state: [items, 1500, hidden]. It masks
        # nothing; in MiniCPM-o each second attends to itself and what came before.
        hf_encoders={
            "audio": HuggingFaceEncoder(
                WHISPER_ENCODER, prefix="apm.", config=("audio_config",)
            )
        },
        serves="chat",
    )


RECIPES = {"minicpmo": recipe()}
