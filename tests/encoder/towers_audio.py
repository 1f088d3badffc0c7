# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny audio towers: those of Whisper and its kin, and those that pack clips."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from transformers import (
    WhisperConfig,
)
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
    Qwen2_5OmniAudioEncoderConfig,
)
from transformers.models.qwen2_audio.configuration_qwen2_audio import (
    Qwen2AudioEncoderConfig,
)
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoderConfig,
)
from vllm.config import VllmConfig

from tests.encoder.tower import (
    WHISPER,
    Inputs,
    Sizes,
    Towers,
    config,
    each,
    mel_batches,
    padding_bias,
    with_model,
)

TOWERS = Towers()

# Frames of each clip, for towers that take clips one after the other without padding.
PACKED = Sizes(
    survey=[(300, 161), (30,), (100, 61, 77)],
    further=[(90,), (150, 33, 70), (40,), (41,), (200,), (60, 60), (31, 33), (95,)],
)


def _sdpa(made: Any) -> Any:
    made._attn_implementation = "sdpa"
    return made


# ---------------------------------------------------------------- Whisper and kin


def _whisper_config(**others: Any) -> WhisperConfig:
    return WhisperConfig(
        **WHISPER,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
        vocab_size=100,
        **others,
    )


def _whisper_clips(clips: int) -> Inputs:
    return ([torch.randn(80, 200) for _ in range(clips)],), {}


WHISPER_BATCHES = Sizes(survey=each(6, 1, 3), further=each(2, 1, 4, 5, 7, 8, 9, 3))


@TOWERS.add(_whisper_clips, WHISPER_BATCHES, {"WhisperEncoderLayer": 3}, graphs=1)
def whisper(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.whisper import WhisperEncoder

    return WhisperEncoder(vllm_config=with_model(vllm_config, _whisper_config()))


@TOWERS.add(_whisper_clips, WHISPER_BATCHES, {"WhisperEncoderLayer": 3}, graphs=1)
def kimi_audio(vllm_config: VllmConfig) -> nn.Module:
    """Whisper's, with a config of its own in a folder of the checkpoint."""
    from vllm.model_executor.models.kimi_audio import (
        KIMIA_WHISPER_SUBFOLDER,
        KimiAudioWhisperEncoder,
    )

    whisper_config = _whisper_config(architectures=["UltravoxModel"])
    made = with_model(vllm_config, whisper_config)
    with tempfile.TemporaryDirectory() as directory:
        whisper_config.save_pretrained(Path(directory, KIMIA_WHISPER_SUBFOLDER))
        made.model_config.model = directory
        return KimiAudioWhisperEncoder(vllm_config=made)


def _moss_chunks(*lengths: int) -> Inputs:
    """Chunks of 200 frames become 100; lengths are counted in fours of these."""
    return (torch.randn(len(lengths), 80, 200), torch.tensor(lengths)), {}


@TOWERS.add(
    _moss_chunks,
    Sizes(
        survey=[(25, 25, 25, 7), (1,), (25, 12)],
        further=[
            (25,),
            (25, 25, 3),
            (9,),
            (2, 1),
            (25, 25, 25, 25, 20),
            (14,),
            (11, 13, 17),
            (25, 25, 25, 25, 25, 25, 4),
        ],
    ),
    {"WhisperEncoderLayer": 3},
    graphs=1,
)
def moss_transcribe_diarize(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.moss_transcribe_diarize import (
        MossTranscribeDiarizeWhisperEncoder,
    )

    made = config(audio_config=_whisper_config(), audio_merge_size=4)
    return MossTranscribeDiarizeWhisperEncoder(
        vllm_config=with_model(vllm_config, made)
    )


def _ultravox_clips(frames: int, *lengths: int) -> Inputs:
    mels = torch.randn(len(lengths), 80, frames)
    return (mels, torch.tensor(lengths)), {}


@TOWERS.add(
    _ultravox_clips,
    Sizes(
        survey=[(200, 200, 121, 30, 200), (4, 4), (90, 90, 33)],
        further=[
            (90, 90),
            (160, 160, 33, 100),
            (2, 2),
            (200, 200, 200),
            (77, 77, 1, 9, 60, 33),
            (200, 200),
            (31, 30, 31),
            (121, 100),
        ],
    ),
    {"WhisperEncoderLayer": 3},
    graphs=2,
)
def ultravox(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.ultravox import UltravoxWhisperEncoder

    made = with_model(vllm_config, _whisper_config())
    return UltravoxWhisperEncoder(vllm_config=made, enable_pp=False)


@TOWERS.add(
    # Clips of whole chunks; a chunk is 200 frames of 160 samples.
    lambda *chunks: (([torch.randn(200 * 160 * n) for n in chunks],), {}),
    Sizes(
        survey=[(1, 2, 3), (1,), (1, 1)],
        further=[(1,), (2,), (3,), (1, 3), (2, 2), (4,), (5, 1, 1), (3, 2)],
    ),
    {"WhisperEncoderLayer": 3},
    graphs=1,
)
def voxtral(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.voxtral import VoxtralEncoderModel

    made = _whisper_config()
    made.window_size = 400
    made.hop_length = 160
    made.sampling_rate = 16000
    made.global_log_mel_max = 1.5
    made.is_causal = False
    return VoxtralEncoderModel(with_model(vllm_config, made))


def _padded_windows(*lengths: int) -> Inputs:
    """A window of 200 frames becomes 100; lengths are counted in these."""
    mels = torch.randn(len(lengths), 80, 200)
    return (mels,), {"attention_mask": padding_bias(100, lengths)}


WINDOWS = Sizes(
    survey=[(100, 60, 3, 50), (2,), (44, 99)],
    further=[
        (100,),
        (100, 20, 70),
        (1, 100),
        (5, 4, 3, 2, 1),
        (44,),
        (99,) * 6,
        (7,),
        (33, 33, 98, 2, 61, 100, 12),
    ],
)


@TOWERS.add(_padded_windows, WINDOWS, {"Qwen2AudioEncoderLayer": 3}, graphs=1)
def qwen2_audio(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.qwen2_audio import Qwen2AudioEncoder

    return Qwen2AudioEncoder(_sdpa(Qwen2AudioEncoderConfig(**WHISPER)))


@TOWERS.add(_padded_windows, WINDOWS, {"Qwen2AudioEncoderLayer": 3}, graphs=1)
def audioflamingo3(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.audioflamingo3 import AudioFlamingo3Encoder

    return AudioFlamingo3Encoder(_sdpa(Qwen2AudioEncoderConfig(**WHISPER)))


def _halved_clips(frames: int, *lengths: int) -> Inputs:
    """Lengths are counted after the convolution has halved the frames."""
    bias = padding_bias((frames - 1) // 2 + 1, lengths)
    return (torch.randn(len(lengths), 80, frames),), {"attention_mask": bias}


@TOWERS.add(
    _halved_clips,
    Sizes(
        survey=[(200, 100, 60, 3, 50), (20, 10), (90, 44, 45)],
        further=[
            (90, 44),
            (150, 75, 20, 70),
            (20, 10, 3),
            (200, 100),
            (33, 17, 17, 17, 17, 17),
            (8, 4),
            (121, 61),
            (77, 39, 1, 20),
        ],
    ),
    {"MiniCPMWhisperEncoderLayer": 3},
    graphs=1,
)
def minicpmo_audio(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.minicpmo import MiniCPMWhisperEncoder

    return MiniCPMWhisperEncoder(_sdpa(_whisper_config()))


@TOWERS.add(
    lambda clips, frames: ((torch.randn(clips, 80, frames),), {}),
    Sizes(
        survey=[(4, 200), (1, 20), (2, 90)],
        further=[
            (1, 90),
            (3, 150),
            (1, 200),
            (2, 20),
            (5, 33),
            (1, 8),
            (6, 101),
            (2, 57),
        ],
    ),
    {"GlmAsrEncoderLayer": 3},
    graphs=1,
)
def glmasr(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.glmasr import GlmAsrEncoder

    return GlmAsrEncoder(
        config(
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=256,
            num_hidden_layers=3,
            num_mel_bins=80,
            hidden_act="gelu",
            rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        )
    )


@TOWERS.add(
    mel_batches(64),
    Sizes(
        survey=[(450, 133, 170), (60,), (300, 161)],
        further=[
            (290,),
            (100, 100),
            (33,),
            (120, 50, 99, 100),
            (201,),
            (300, 200, 100),
            (101, 34),
            (160,),
        ],
    ),
    {"MossAudioEncoderLayer": 3},
    graphs=1,
)
def moss_audio(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.moss_audio import (
        MossAudioEncoder,
        MossAudioEncoderConfig,
    )

    sizes = {name: WHISPER[name] for name in WHISPER if name != "max_source_positions"}
    return MossAudioEncoder(
        MossAudioEncoderConfig(
            **sizes | {"num_mel_bins": 64},
            downsample_hidden_size=16,
            output_dim=64,
            n_window=50,
            conv_chunksize=64,
            deepstack_encoder_layer_indexes=[0],
        )
    )


# ---------------------------------------------------------------- packed clips


def _omni_clips(*lengths: int) -> Inputs:
    frames = torch.tensor(lengths)
    return (torch.randn(80, sum(lengths)),), {
        "feature_lens": frames,
        "aftercnn_lens": (frames - 1) // 2 + 1,
    }


@TOWERS.add(_omni_clips, PACKED, {"Qwen2_5OmniAudioEncoderLayer": 3}, graphs=0)
def qwen2_5_omni_audio(vllm_config: VllmConfig) -> nn.Module:
    """Its block reads the lengths' values: eager, unless by hand."""
    from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniAudioEncoder

    made = Qwen2_5OmniAudioEncoderConfig(**WHISPER, n_window=20, output_dim=96)
    return Qwen2_5OmniAudioEncoder(_sdpa(made))


def _omni_moe_clips(*lengths: int) -> Inputs:
    from vllm.model_executor.models.qwen3_omni_moe_thinker import (
        _get_feat_extract_output_lengths,
    )

    frames = torch.tensor(lengths)
    return (torch.randn(64, sum(lengths)),), {
        "feature_lens": frames,
        "aftercnn_lens": _get_feat_extract_output_lengths(frames),
    }


@TOWERS.add(
    _omni_moe_clips,
    Sizes(
        survey=[(600, 461), (9,), (100, 161, 77)],
        further=[
            (90,),
            (150, 33, 70),
            (8,),
            (100,),
            (201,),
            (60, 60),
            (450, 33, 170, 290),
            (17, 101),
        ],
    ),
    {"Qwen3OmniMoeAudioEncoderLayer": 3},
    graphs=2,
)
def qwen3_omni_audio(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.qwen3_omni_moe_thinker import (
        Qwen3OmniMoeAudioEncoder,
    )

    return Qwen3OmniMoeAudioEncoder(
        Qwen3OmniMoeAudioEncoderConfig(
            **WHISPER | {"num_mel_bins": 64},
            n_window=50,
            n_window_infer=400,
            output_dim=96,
            downsample_hidden_size=16,
            conv_chunksize=500,
        )
    )


def _funaudio_clips(*lengths: int) -> Inputs:
    frames = torch.tensor(lengths)
    halved = (frames - 1) // 2 + 1
    longest = int(((halved - 2) // 2 + 1).max())
    return (torch.randn(80, sum(lengths)), frames, halved, longest), {}


@TOWERS.add(
    _funaudio_clips,
    Sizes(
        survey=[(300, 61), (20,), (100, 33, 70)],
        further=[
            (90,),
            (150, 33, 70),
            (40,),
            (41,),
            (100, 61),
            (24,),
            (77, 25, 52, 38),
            (160,),
        ],
    ),
    {"FunAudioChatAudioEncoderLayer": 3},
    graphs=1,
)
def funaudiochat(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.funaudiochat import FunAudioChatAudioEncoder

    return FunAudioChatAudioEncoder(
        config(
            **WHISPER,
            scale_embedding=False,
            n_window=20,
            output_dim=96,
            dropout=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
            activation_function="gelu",
        )
    )
