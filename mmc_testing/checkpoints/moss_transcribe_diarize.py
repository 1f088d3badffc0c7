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
    QWEN,
    WHISPER_ENCODER,
    features_beside,
    qwen_chat_template,
    qwen_sizes,
    vq_adaptor,
    whisper_sizes,
    whisper_tokens,
)
from mmc_testing.hf_encoders import whisper_encoder
from mmc_testing.writer import (
    QWEN_TOKENS,
    Ids,
    Recipe,
    remote_code,
    shapes_of,
    tokens,
)
from vllm_mmc.demo.writer import VOCAB_SIZE

PLACEHOLDER = "<|audio_start|><|audio_pad|><|audio_end|>"
ENCODER_AND_TEXT = shapes_of(
    ("model.whisper_encoder.", WHISPER_ENCODER, "audio_config"),
    ("text.", "Qwen3ForCausalLM", "text_config"),
)
PROCESSOR_MODULE = "processing_moss_transcribe_diarize"
PROCESSOR = "MossTranscribeDiarizeProcessor"


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from vllm.transformers_utils.configs.moss_transcribe_diarize import (
        MossTranscribeDiarizeConfig,
    )

    end = ids["<|endoftext|>"]
    return MossTranscribeDiarizeConfig(
        text_config=qwen_sizes(ids, head_dim=32, rope_theta=1e6, bos_token_id=end),
        audio_config=whisper_sizes(depth, num_mel_bins=80)
        | whisper_tokens(end, vocab_size=VOCAB_SIZE),
        audio_token_id=ids["<|audio_pad|>"],
        audio_merge_size=4,
        tie_word_embeddings=True,
    )


RECIPES = {
    "moss_transcribe_diarize": Recipe(
        "MOSS-Transcribe-Diarize",
        "MossTranscribeDiarizeForConditionalGeneration",
        **QWEN,
        config=_config,
        least_depth=1,
        special_tokens=QWEN_TOKENS
        + tokens("<|audio_start|> <|audio_end|> <|audio_pad|>"),
        processor=features_beside(80),
        placeholder=PLACEHOLDER,
        chat_template=qwen_chat_template(PLACEHOLDER),
        hf_class="",
        shapes=lambda config: ENCODER_AND_TEXT(config) | vq_adaptor(0, 2, 3),
        renames={r"^text\.model\.": "model.language_model."},
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
        # The processor's code comes with the checkpoint. Without a length vLLM profiles
        # with 90 minutes.
        engine_args={
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": 30 * 16000}},
            "trust_remote_code": True,
        },
        hf_encoders=whisper_encoder("model.whisper_encoder.", "audio_config"),
        serves="transcriptions",
    )
}
