# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen3-ASR checkpoint, two text layers, 128 mel bins, for its three models."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmc_testing.checkpoints.common import (
    QWEN,
    qwen_chat_template,
    qwen_sizes,
    whisper_sizes,
)
from mmc_testing.hf_encoders import Projected, read_weights, with_weights
from mmc_testing.writer import (
    QWEN_TOKENS,
    Ids,
    Recipe,
    Shapes,
    published_shapes,
    tokens,
)
from vllm_mmc.demo.writer import HIDDEN, VOCAB_SIZE, text_sizes

# Stock's encoder gives a clip under a second other values alone than beside a longer
# one, and other than Hugging Face's.
SAMPLES = ([1.0], [3.0], [29.0], [12.5, 0.7])
PLACEHOLDER = "<|audio_start|><|audio_pad|><|audio_end|>"


def _audio_sizes(depth: int) -> dict[str, Any]:
    sizes = {"n_window": 50, "n_window_infer": 800, "downsample_hidden_size": 16}
    return whisper_sizes(depth, output_dim=HIDDEN, **sizes)


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from vllm.transformers_utils.configs.qwen3_asr import Qwen3ASRConfig

    return Qwen3ASRConfig(
        thinker_config={
            "audio_config": _audio_sizes(depth),
            "text_config": qwen_sizes(
                ids,
                head_dim=32,
                tie_word_embeddings=False,
                rope_scaling={
                    "rope_type": "default",
                    "mrope_section": [8, 4, 4],
                    "mrope_interleaved": True,
                    "rope_theta": 1e6,
                },
            ),
            "audio_token_id": ids["<|audio_pad|>"],
            "audio_start_token_id": ids["<|audio_start|>"],
            "audio_end_token_id": ids["<|audio_end|>"],
            # For the forced aligner: the output layer tells one of so many times.
            "classify_num": VOCAB_SIZE,
            "dtype": dtype,
        },
        timestamp_token_id=ids["<timestamp>"],
        timestamp_segment_time=80,
    )


def _hf_config(published: Any) -> Any:
    """Returns Hugging Face's config; vLLM's is the published one."""
    from transformers.models.qwen3_asr import Qwen3ASRConfig

    thinker = published.thinker_config
    return Qwen3ASRConfig(
        audio_config=_audio_sizes(thinker.audio_config.encoder_layers),
        text_config=text_sizes(head_dim=32),
        tie_word_embeddings=False,
    )


def _shapes(config: Any) -> Shapes:
    return published_shapes("Qwen3ASRForConditionalGeneration", _hf_config(config))


def _processor(tokenizer: Any) -> Any:
    from transformers.models.qwen3_asr import (
        Qwen3ASRFeatureExtractor,
        Qwen3ASRProcessor,
    )

    return Qwen3ASRProcessor(
        feature_extractor=Qwen3ASRFeatureExtractor(), tokenizer=tokenizer
    )


def _load_hf_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Returns Hugging Face's encoder and projector with these weights.

    Called with log-mel features [clips, 128, frames], frames a multiple of 100, and
    their mask [clips, frames], it gives [tokens, hidden size of the text model].
    """
    from transformers.models.qwen3_asr.modeling_qwen3_asr import (
        Qwen3ASREncoder,
        Qwen3ASRMultiModalProjector,
    )
    from vllm.transformers_utils.configs.qwen3_asr import Qwen3ASRConfig

    config = _hf_config(Qwen3ASRConfig.from_pretrained(path))
    config.audio_config._attn_implementation = "sdpa"
    tower = Qwen3ASREncoder(config.audio_config)
    encoder = Projected(tower, Qwen3ASRMultiModalProjector(config))
    weights = {
        re.sub("^tower.proj", "projector.linear_", f"tower.{name}"): tensor
        for name, tensor in read_weights(path, "thinker.audio_tower.").items()
    }
    return with_weights(encoder, weights, dtype)


def _sharded_inputs() -> dict[str, Any]:
    frames = torch.tensor([230, 50, 900])
    return {
        "input_audio_features": torch.randn(128, int(frames.sum())),
        "audio_feature_lengths": frames,
        "feature_attention_mask": torch.ones(3, 900),
    }


QWEN3_ASR = Recipe(
    "Qwen3-ASR",
    "Qwen3ASRForConditionalGeneration",
    **QWEN,
    config=_config,
    least_depth=1,
    special_tokens=QWEN_TOKENS
    + tokens("<|audio_start|> <|audio_end|> <|audio_pad|> <asr_text> <timestamp>"),
    processor=_processor,
    placeholder=PLACEHOLDER,
    chat_template=qwen_chat_template(PLACEHOLDER),
    named_tokens={
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
        "audio_token": "<|audio_pad|>",
    },
    hf_class="",
    shapes=_shapes,
    renames={
        r"^model\.audio_tower\.": "thinker.audio_tower.",
        r"^model\.multi_modal_projector\.linear_": "thinker.audio_tower.proj",
        r"^model\.language_model\.": "thinker.model.",
        r"^lm_head\.": "thinker.lm_head.",
    },
    scales={r"thinker\.model\..*q_norm\.weight$": 2},
    modality="audio",
    samples=SAMPLES,
    text="",
    engine_args={"limit_mm_per_prompt": {"audio": 2}},
    hf_encoders={"audio": _load_hf_encoder},
    regions=("CompiledQwen3OmniMoeAudioEncoderLayer",),
    backbones_seen=2,
    sharded_inputs=_sharded_inputs,
    serves="transcriptions",
)
VARIANT = replace(
    QWEN3_ASR, samples=SAMPLES[:3], regions=(), sharded_inputs=None, serves=""
)
RECIPES = {
    "qwen3_asr": QWEN3_ASR,
    "qwen3_asr_realtime": replace(
        VARIANT,
        title="Qwen3-ASR, live",
        engine_args={
            "limit_mm_per_prompt": {"audio": 1},
            "hf_overrides": {"architectures": ["Qwen3ASRRealtimeGeneration"]},
        },
    ),
    "qwen3_asr_forced_aligner": replace(
        VARIANT,
        title="Qwen3 forced aligner",
        text="Hello<timestamp>you<timestamp>",
        engine_args={
            "limit_mm_per_prompt": {"audio": 1},
            "runner": "pooling",
            "hf_overrides": {
                "architectures": ["Qwen3ASRForcedAlignerForTokenClassification"]
            },
        },
    ),
}
