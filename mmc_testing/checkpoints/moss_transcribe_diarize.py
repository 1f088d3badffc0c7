# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny MOSS-Transcribe-Diarize checkpoint: two text layers, 80 mel bins.

As published, the processor class is a Python file of the checkpoint, so an engine needs
`trust_remote_code`. Here that file is a stand-in: it does what vLLM asks of it, but
does not put the placeholders into the text itself.
"""

from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    VOCAB_SIZE,
    WHISPER_ENCODER,
    HuggingFaceEncoder,
    qwen_chat_template,
    text_sizes,
    vq_adaptor,
    whisper_sizes,
    whisper_tokens,
)
from mmc_testing.writer import (
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    Ids,
    Recipe,
    Shapes,
    prefixed,
    published_shapes,
    remote_code,
)
from vllm_mmc.demo.writer import QWEN_GENERATION, qwen_tokenizer

PLACEHOLDER = "<|audio_start|><|audio_pad|><|audio_end|>"
PROCESSOR_MODULE = "processing_moss_transcribe_diarize"
PROCESSOR = "MossTranscribeDiarizeProcessor"


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from vllm.transformers_utils.configs.moss_transcribe_diarize import (
        MossTranscribeDiarizeConfig,
    )

    end = ids["<|endoftext|>"]
    return MossTranscribeDiarizeConfig(
        text_config=text_sizes(
            head_dim=32,
            rope_theta=1e6,
            bos_token_id=end,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=end,
        ),
        audio_config=whisper_sizes(depth, num_mel_bins=80)
        | whisper_tokens(end, vocab_size=VOCAB_SIZE),
        audio_token_id=ids["<|audio_pad|>"],
        audio_merge_size=4,
        tie_word_embeddings=True,
    )


def _shapes(config: Any) -> Shapes:
    from transformers import Qwen3ForCausalLM
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder = published_shapes(WhisperEncoder, config.audio_config)
    return {
        **published_shapes(Qwen3ForCausalLM, config.text_config),
        **prefixed("model.whisper_encoder.", encoder),
        **vq_adaptor(0, 2, 3),
    }


def _processor(tokenizer: Any) -> Any:
    from transformers import WhisperFeatureExtractor

    return [WhisperFeatureExtractor(), tokenizer]


RECIPES = {
    "moss_transcribe_diarize": Recipe(
        "MOSS-Transcribe-Diarize",
        "MossTranscribeDiarizeForConditionalGeneration",
        config=_config,
        least_depth=1,
        special_tokens=(
            *QWEN_TOKENS,
            "<|audio_start|>",
            "<|audio_end|>",
            "<|audio_pad|>",
        ),
        tokenizer=qwen_tokenizer,
        processor=_processor,
        template=QWEN_TEMPLATE,
        placeholder=PLACEHOLDER,
        chat_template=qwen_chat_template(PLACEHOLDER),
        roles=QWEN_ROLES,
        generation=QWEN_GENERATION,
        max_tokens=32768,
        hf_class="",
        shapes=_shapes,
        renames={r"^model\.(?=embed_tokens|layers|norm)": "model.language_model."},
        leave_out="lm_head",  # published as embed_tokens only
        sinusoids=r"whisper_encoder\.embed_positions",
        scales={
            r"self_attn\.q_norm\.weight$": 4,
            # It is the output layer too: large rows would answer with the token before.
            "embed_tokens": 0.05,
        },
        files=remote_code(f"{PROCESSOR_MODULE}.py"),
        settings={
            "processor_config.json": {
                "processor_class": PROCESSOR,
                "auto_map": {"AutoProcessor": f"{PROCESSOR_MODULE}.{PROCESSOR}"},
                "audio_tokens_per_second": 12.5,
                "audio_merge_size": 4,
                "time_marker_every_seconds": 5,
            }
        },
        modality="audio",
        samples=([0.3], [3.0], [29.0], [45.0]),
        text="",
        # Its processor is nobody's but the checkpoint's. Without a length vLLM profiles
        # with 90 minutes.
        engine_args={
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": 30 * 16000}},
            "trust_remote_code": True,
        },
        # encoder([items, 80, 3000]).last_hidden_state: [items, 1500, hidden]
        hf_encoders={
            "audio": HuggingFaceEncoder(
                WHISPER_ENCODER,
                prefix="model.whisper_encoder.",
                config=("audio_config",),
            )
        },
        serves="transcriptions",
    )
}
