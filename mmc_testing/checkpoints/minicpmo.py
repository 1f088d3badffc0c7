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
    QWEN,
    WHISPER_ENCODER,
    features_beside,
    qwen_chat_template,
    qwen_sizes,
    whisper_sizes,
    whisper_tokens,
)
from mmc_testing.hf_encoders import whisper_encoder
from mmc_testing.writer import (
    QWEN_ROLES,
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
    shapes_of,
)
from vllm_mmc.demo.writer import HIDDEN, VOCAB_SIZE

QUERIES = 64  # tokens of a picture
CONFIG_MODULE = "configuration_minicpm"
PROCESSOR_MODULE = "processing_minicpmo"
PROCESSOR = "MiniCPMVImageProcessor"
PLACEHOLDER = "(<audio>./</audio>)"

# By these names vLLM's processor asks the tokenizer for them.
NAMED = {
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
    "spk_start": "<|spk_bos|>",
    "spk_end": "<|spk_eos|>",
}
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
        **qwen_sizes(ids, head_dim=32, rope_theta=1e6, tie_word_embeddings=False),
        bos_token_id=end,
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
    encoders = shapes_of(
        ("apm.", WHISPER_ENCODER, "audio_config"),
        ("vpm.", "SiglipVisionModel", "vision_config"),
    )
    return {
        **encoders(config),
        **prefixed("llm.", published_shapes(VERSIONS[version][0], config)),
        **resampler_shapes(QUERIES),
        **linear("audio_projection_layer.linear1", HIDDEN, HIDDEN),
        **linear("audio_projection_layer.linear2", HIDDEN, HIDDEN),
    }


def recipe(version: str = "2.6") -> Recipe:
    """Returns the recipe.

    Args:
        version: "2.6", or "4.5": another text model, and five tokens to an embedding.
    """
    code = remote_code(f"{VERSIONS[version][1]}.py")
    return Recipe(
        "MiniCPM-o",
        "MiniCPMO",
        **QWEN | {"roles": QWEN_ROLES | {"unk_token": "<unk>"}},
        config=partial(_config, version),
        least_depth=1,
        special_tokens=(*QWEN_TOKENS, "<unk>", *NAMED.values()),
        # One file is the feature extractor's and the image processor's.
        processor=features_beside(
            80,
            image_processor_type=PROCESSOR,
            auto_map={"AutoImageProcessor": f"{PROCESSOR_MODULE}.{PROCESSOR}"},
            max_slice_nums=9,
            image_feature_size=QUERIES,
            version=float(version),
        ),
        placeholder=PLACEHOLDER,
        chat_template=qwen_chat_template(PLACEHOLDER),
        named_tokens=NAMED,
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
        hf_encoders=whisper_encoder("apm.", "audio_config"),
        serves="chat",
    )


RECIPES = {"minicpmo": recipe()}
