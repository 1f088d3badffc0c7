# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny checkpoints that are real in everything but size and training.

Each builder writes a directory that vLLM and Hugging Face load as they load the
published checkpoint of the same family: real config class, tokenizer, processor and
chat template, the published parameter names, and random weights.
One module per family; what the families share is in `common`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_mmc.testing import media
from vllm_mmc.testing.checkpoints.audioflamingo3 import (
    audioflamingo3_prompt,
    load_hf_audioflamingo3_encoder,
    tiny_audioflamingo3,
)
from vllm_mmc.testing.checkpoints.clef_omni import (
    QUESTIONS_TEXT,
    joint_schema,
    tiny_clef_omni,
)
from vllm_mmc.testing.checkpoints.kimi_audio import (
    kimi_audio_prompt,
    load_hf_kimi_audio_encoder,
    tiny_kimi_audio,
    zero_bias_of_keys,
)
from vllm_mmc.testing.checkpoints.llama4 import (
    llama4_prompt,
    load_hf_llama4_encoder,
    tiny_llama4,
)
from vllm_mmc.testing.checkpoints.minicpmo import (
    load_hf_minicpmo_encoder,
    minicpmo_prompt,
    tiny_minicpmo,
)
from vllm_mmc.testing.checkpoints.moss_transcribe_diarize import (
    load_hf_moss_transcribe_diarize_encoder,
    moss_transcribe_diarize_prompt,
    tiny_moss_transcribe_diarize,
)
from vllm_mmc.testing.checkpoints.qwen2_5_omni import (
    load_hf_qwen2_5_omni_audio_encoder,
    load_hf_qwen2_5_omni_vision_encoder,
    qwen2_5_omni_prompt,
    tiny_qwen2_5_omni,
)
from vllm_mmc.testing.checkpoints.qwen2_5_vl import (
    load_hf_vision_tower,
    qwen2_5_vl_prompt,
    tiny_qwen2_5_vl,
)
from vllm_mmc.testing.checkpoints.qwen2_audio import (
    load_hf_qwen2_audio_encoder,
    qwen2_audio_prompt,
    tiny_qwen2_audio,
)
from vllm_mmc.testing.checkpoints.qwen3_asr import (
    load_hf_qwen3_asr_encoder,
    qwen3_asr_prompt,
    tiny_qwen3_asr,
)
from vllm_mmc.testing.checkpoints.qwen3_omni import (
    load_hf_qwen3_omni_audio_encoder,
    load_hf_qwen3_omni_vision_encoder,
    qwen3_omni_prompt,
    tiny_qwen3_omni,
)
from vllm_mmc.testing.checkpoints.ultravox import (
    load_hf_ultravox_encoder,
    tiny_ultravox,
    ultravox_prompt,
)
from vllm_mmc.testing.checkpoints.voxtral import (
    load_hf_voxtral_encoder,
    tiny_voxtral,
    voxtral_prompt,
)
from vllm_mmc.testing.checkpoints.whisper import (
    load_hf_whisper_encoder,
    tiny_whisper,
    whisper_prompt,
)

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


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint, for what goes the same way with all of them.

    Attributes:
        title: its name in texts.
        write: writes a checkpoint: (directory, depth=blocks of the encoder).
        prompt: (text, images=how many) or (text, audios=how many) -> one user turn,
            as text or as tokens.
        modality: "image" or "audio".
        samples: some requests: for each item (width, height) or seconds.
        text: of a request.
        engine_args: beside `default_engine_args`.
        pooling: `PoolingParams` of a request, if the engine pools.
        mend_stock: sets what stock's class leaves as it finds the memory.
    """

    title: str
    write: Callable[..., Path]
    prompt: Callable[..., str | list[int]]
    modality: str = "image"
    samples: Sequence[Sequence[Any]] = (
        [(224, 224)],
        [(448, 336)],
        [(504, 588)],
        [(280, 280), (336, 224)],
    )
    text: str = "Who is this?"
    # No video: vLLM would profile the encoder with two of the largest, 10 s each start.
    engine_args: Mapping[str, Any] = field(
        default_factory=lambda: {"limit_mm_per_prompt": {"image": 2, "video": 0}}
    )
    pooling: Mapping[str, Any] = field(default_factory=dict)
    mend_stock: Callable[[Any], None] = lambda model: None

    def request(self, items: Sequence[Any]) -> dict[str, Any]:
        """Returns what `LLM.generate` takes: real pictures or speech, and the text.

        Args:
            items: as in `samples`.
        """
        data: list[Any]
        if self.modality == "audio":
            data = [(media.speech(seconds), media.SPEECH_RATE) for seconds in items]
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


# Stock's encoder gives a clip under a second other values alone than beside a longer
# one, and other than Hugging Face's.
QWEN3_SAMPLES = ([1.0], [3.0], [29.0], [12.5, 0.7])

FAMILIES = {
    "qwen2_5_vl": Family("Qwen2.5-VL", tiny_qwen2_5_vl, qwen2_5_vl_prompt),
    "llama4": Family("Llama4", tiny_llama4, llama4_prompt),
    "whisper": Family(
        "Whisper",
        tiny_whisper,
        whisper_prompt,
        modality="audio",
        samples=([0.3], [3.0], [12.5], [30.0]),
        text="",
        engine_args={"limit_mm_per_prompt": {"audio": 1}, "max_model_len": 448},
    ),
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
