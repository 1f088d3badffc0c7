# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints that are real in everything but size and training.

Each builder writes a directory that vLLM and Hugging Face load as they load the
published checkpoint of the same family: real config class, tokenizer, processor and
chat template, the published parameter names, and random weights.
One module per family; what the families share is in `common`. The builders of the two
families that `vllm-mmc demo` has in the wheel are in `vllm_mmc.demo.checkpoints`.
"""

from mmc_testing.checkpoints.audioflamingo3 import (
    audioflamingo3_prompt,
    load_hf_audioflamingo3_encoder,
    tiny_audioflamingo3,
)
from mmc_testing.checkpoints.clef_omni import (
    QUESTIONS_TEXT,
    joint_schema,
    tiny_clef_omni,
)
from mmc_testing.checkpoints.kimi_audio import (
    kimi_audio_prompt,
    load_hf_kimi_audio_encoder,
    tiny_kimi_audio,
    zero_bias_of_keys,
)
from mmc_testing.checkpoints.llama4 import (
    llama4_prompt,
    load_hf_llama4_encoder,
    tiny_llama4,
)
from mmc_testing.checkpoints.minicpmo import (
    load_hf_minicpmo_encoder,
    minicpmo_prompt,
    tiny_minicpmo,
)
from mmc_testing.checkpoints.moss_transcribe_diarize import (
    load_hf_moss_transcribe_diarize_encoder,
    moss_transcribe_diarize_prompt,
    tiny_moss_transcribe_diarize,
)
from mmc_testing.checkpoints.qwen2_5_omni import (
    load_hf_qwen2_5_omni_audio_encoder,
    load_hf_qwen2_5_omni_vision_encoder,
    qwen2_5_omni_prompt,
    tiny_qwen2_5_omni,
)
from mmc_testing.checkpoints.qwen2_5_vl import load_hf_vision_tower
from mmc_testing.checkpoints.qwen2_audio import (
    load_hf_qwen2_audio_encoder,
    qwen2_audio_prompt,
    tiny_qwen2_audio,
)
from mmc_testing.checkpoints.qwen3_asr import (
    load_hf_qwen3_asr_encoder,
    qwen3_asr_prompt,
    tiny_qwen3_asr,
)
from mmc_testing.checkpoints.qwen3_omni import (
    load_hf_qwen3_omni_audio_encoder,
    load_hf_qwen3_omni_vision_encoder,
    qwen3_omni_prompt,
    tiny_qwen3_omni,
)
from mmc_testing.checkpoints.ultravox import (
    load_hf_ultravox_encoder,
    tiny_ultravox,
    ultravox_prompt,
)
from mmc_testing.checkpoints.voxtral import (
    load_hf_voxtral_encoder,
    tiny_voxtral,
    voxtral_prompt,
)
from mmc_testing.checkpoints.whisper import load_hf_whisper_encoder
from vllm_mmc.demo.checkpoints.qwen2_5_vl import qwen2_5_vl_prompt, tiny_qwen2_5_vl
from vllm_mmc.demo.checkpoints.whisper import tiny_whisper, whisper_prompt
from vllm_mmc.demo.families import FAMILIES as SHIPPED
from vllm_mmc.demo.families import Family

__all__ = [
    "FAMILIES",
    "Family",
    "audioflamingo3_prompt",
    "kimi_audio_prompt",
    "llama4_prompt",
    "load_hf_audioflamingo3_encoder",
    "load_hf_kimi_audio_encoder",
    "load_hf_llama4_encoder",
    "load_hf_minicpmo_encoder",
    "load_hf_moss_transcribe_diarize_encoder",
    "load_hf_qwen2_5_omni_audio_encoder",
    "load_hf_qwen2_5_omni_vision_encoder",
    "load_hf_qwen2_audio_encoder",
    "load_hf_qwen3_asr_encoder",
    "load_hf_qwen3_omni_audio_encoder",
    "load_hf_qwen3_omni_vision_encoder",
    "load_hf_ultravox_encoder",
    "load_hf_vision_tower",
    "load_hf_voxtral_encoder",
    "load_hf_whisper_encoder",
    "minicpmo_prompt",
    "moss_transcribe_diarize_prompt",
    "qwen2_5_omni_prompt",
    "qwen2_5_vl_prompt",
    "qwen2_audio_prompt",
    "qwen3_asr_prompt",
    "qwen3_omni_prompt",
    "tiny_audioflamingo3",
    "tiny_clef_omni",
    "tiny_kimi_audio",
    "tiny_llama4",
    "tiny_minicpmo",
    "tiny_moss_transcribe_diarize",
    "tiny_qwen2_5_omni",
    "tiny_qwen2_5_vl",
    "tiny_qwen2_audio",
    "tiny_qwen3_asr",
    "tiny_qwen3_omni",
    "tiny_ultravox",
    "tiny_voxtral",
    "tiny_whisper",
    "ultravox_prompt",
    "voxtral_prompt",
    "whisper_prompt",
]


# Stock's encoder gives a clip under a second other values alone than beside a longer
# one, and other than Hugging Face's.
QWEN3_SAMPLES = ([1.0], [3.0], [29.0], [12.5, 0.7])

FAMILIES = SHIPPED | {
    "llama4": Family("Llama4", tiny_llama4, llama4_prompt),
    "qwen3_asr": Family(
        "Qwen3-ASR",
        tiny_qwen3_asr,
        qwen3_asr_prompt,
        modality="audio",
        samples=QWEN3_SAMPLES,
        text="",
        engine_args={"limit_mm_per_prompt": {"audio": 2}},
    ),
    "qwen2_audio": Family(
        "Qwen2-Audio",
        tiny_qwen2_audio,
        qwen2_audio_prompt,
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        text="What is said?",
        engine_args={"limit_mm_per_prompt": {"audio": 2}},
    ),
    "audioflamingo3": Family(
        "Audio Flamingo 3",
        tiny_audioflamingo3,
        audioflamingo3_prompt,
        modality="audio",
        samples=([0.3], [3.0], [29.0], [45.0]),
        text="What is said?",
        # Without a length vLLM profiles with ten minutes.
        engine_args={
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": 30 * 16000}}
        },
    ),
    "qwen2_5_omni": Family(
        "Qwen2.5-Omni",
        tiny_qwen2_5_omni,
        qwen2_5_omni_prompt,
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        engine_args={"limit_mm_per_prompt": {"audio": 2, "image": 2, "video": 0}},
    ),
    "qwen3_omni": Family(
        "Qwen3-Omni",
        tiny_qwen3_omni,
        qwen3_omni_prompt,
        modality="audio",
        samples=QWEN3_SAMPLES,
        engine_args={"limit_mm_per_prompt": {"audio": 2, "image": 2, "video": 0}},
    ),
    "clef_omni": Family(
        "Clef-Omni",
        tiny_clef_omni,
        qwen3_omni_prompt,
        modality="audio",
        samples=QWEN3_SAMPLES,
        text=QUESTIONS_TEXT,
        engine_args={
            "limit_mm_per_prompt": {"audio": 2, "image": 2, "video": 0},
            "runner": "pooling",
        },
        pooling={"extra_kwargs": {"joint_schema": joint_schema()}},
    ),
    "ultravox": Family(
        "Ultravox",
        tiny_ultravox,
        ultravox_prompt,
        modality="audio",
        # No two of different lengths: stock's then have other values than alone.
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="",
        # Its processor is nobody's but the checkpoint's.
        engine_args={"limit_mm_per_prompt": {"audio": 2}, "trust_remote_code": True},
    ),
    "voxtral": Family(
        "Voxtral",
        tiny_voxtral,
        voxtral_prompt,
        modality="audio",
        samples=([0.3], [3.0], [29.0], [12.5, 0.7]),
        text="",
        engine_args={
            "limit_mm_per_prompt": {"audio": 2},
            "config_format": "mistral",
            "load_format": "mistral",
            "tokenizer_mode": "mistral",
        },
    ),
    "kimi_audio": Family(
        "Kimi-Audio",
        tiny_kimi_audio,
        kimi_audio_prompt,
        modality="audio",
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="",
        # Its config is nobody's but the checkpoint's.
        engine_args={"limit_mm_per_prompt": {"audio": 1}, "trust_remote_code": True},
        mend_stock=zero_bias_of_keys,
    ),
    "moss_transcribe_diarize": Family(
        "MOSS-Transcribe-Diarize",
        tiny_moss_transcribe_diarize,
        moss_transcribe_diarize_prompt,
        modality="audio",
        samples=([0.3], [3.0], [29.0], [45.0]),
        text="",
        # Its processor is nobody's but the checkpoint's. Without a length vLLM profiles
        # with 90 minutes.
        engine_args={
            "limit_mm_per_prompt": {"audio": {"count": 1, "length": 30 * 16000}},
            "trust_remote_code": True,
        },
    ),
    "qwen3_asr_realtime": Family(
        "Qwen3-ASR, live",
        tiny_qwen3_asr,
        qwen3_asr_prompt,
        modality="audio",
        samples=QWEN3_SAMPLES[:3],
        text="",
        engine_args={
            "limit_mm_per_prompt": {"audio": 1},
            "hf_overrides": {"architectures": ["Qwen3ASRRealtimeGeneration"]},
        },
    ),
    "qwen3_asr_forced_aligner": Family(
        "Qwen3 forced aligner",
        tiny_qwen3_asr,
        qwen3_asr_prompt,
        modality="audio",
        samples=QWEN3_SAMPLES[:3],
        text="Hello<timestamp>you<timestamp>",
        engine_args={
            "limit_mm_per_prompt": {"audio": 1},
            "runner": "pooling",
            "hf_overrides": {
                "architectures": ["Qwen3ASRForcedAlignerForTokenClassification"]
            },
        },
    ),
    "minicpmo": Family(
        "MiniCPM-o",
        tiny_minicpmo,
        minicpmo_prompt,
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
    ),
}
