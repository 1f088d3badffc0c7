# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Ultravox v0.5 checkpoint: two Llama layers, 128 mel bins.

It needs `trust_remote_code`, as the published one does: the processor is code in the
checkpoint. The text model's weights are in the same file, which the published
checkpoint only names.
"""

from functools import partial
from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    WHISPER_ENCODER,
    features_beside,
    whisper_sizes,
)
from mmc_testing.hf_encoders import whisper_encoder
from mmc_testing.writer import (
    Ids,
    Recipe,
    Shapes,
    prefixed,
    published,
    published_shapes,
    remote_code,
    tokens,
)
from vllm_mmc.demo.writer import (
    HIDDEN,
    VOCAB_SIZE,
    byte_level_tokenizer,
    text_sizes,
)

STACK = 8  # encoder outputs that become one embedding
PROJECTOR_HIDDEN = 256


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import LlamaConfig, WhisperConfig

    text = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        **text_sizes(head_dim=32, tie_word_embeddings=False),
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|eot_id|>"],
        pad_token_id=ids["<|finetune_right_pad_id|>"],
        dtype=dtype,
    )
    # By hand: vLLM's config class does not save the text model's config.
    return {
        "architectures": ["UltravoxModel"],
        "model_type": "ultravox",
        "audio_config": WhisperConfig(**whisper_sizes(depth), dtype=dtype).to_dict(),
        "text_config": text.to_dict(),
        "audio_token_index": ids["<|reserved_special_token_0|>"],
        "hidden_size": PROJECTOR_HIDDEN,
        "stack_factor": STACK,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "vocab_size": VOCAB_SIZE,
    }


def _shapes(config: dict[str, Any]) -> Shapes:
    from transformers import LlamaConfig, WhisperConfig

    audio = WhisperConfig(**config["audio_config"])
    text = LlamaConfig(**config["text_config"])
    projector = {
        "ln_pre.weight": (STACK * HIDDEN,),
        "linear_1.weight": (PROJECTOR_HIDDEN, STACK * HIDDEN),
        "ln_mid.weight": (PROJECTOR_HIDDEN // 2,),
        "linear_2.weight": (HIDDEN, PROJECTOR_HIDDEN // 2),
    }
    return {
        **prefixed("audio_tower.", published_shapes(WHISPER_ENCODER, audio)),
        **prefixed("language_model.", published_shapes("LlamaForCausalLM", text)),
        **prefixed("multi_modal_projector.", projector),
    }


RECIPES = {
    "ultravox": Recipe(
        "Ultravox",
        "UltravoxModel",
        config=_config,
        least_depth=1,
        special_tokens=tokens(
            "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> "
            "<|eot_id|> <|finetune_right_pad_id|> <|reserved_special_token_0|>"
        ),
        tokenizer=partial(byte_level_tokenizer, use_regex=True),
        processor=features_beside(128),
        template=(
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
            "{media}{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        placeholder="<|audio|>",
        chat_template=published("ultravox.jinja"),
        roles={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
        generation={
            "pad_token_id": "<|finetune_right_pad_id|>",
            "eos_token_id": ("<|eot_id|>", "<|end_of_text|>"),
        },
        max_tokens=32768,
        hf_class="",
        shapes=_shapes,
        sinusoids=r"audio_tower\.embed_positions",
        files=remote_code("ultravox_processing.py"),
        settings={
            "processor_config.json": {
                "processor_class": "UltravoxProcessor",
                "auto_map": {"AutoProcessor": "ultravox_processing.UltravoxProcessor"},
            }
        },
        modality="audio",
        # No two of different lengths: stock's then have other values than alone.
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="",
        # The processor's code comes with the checkpoint.
        engine_args={"limit_mm_per_prompt": {"audio": 2}, "trust_remote_code": True},
        hf_encoders=whisper_encoder("audio_tower.", "audio_config"),
        serves="chat",
    )
}
