# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny audio towers: conformers, and others that are not of Whisper's kin."""

from typing import Any

import torch
import torch.nn as nn
from transformers import (
    AutoModel,
    ParakeetEncoder,
    ParakeetEncoderConfig,
)
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nAudioConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig
from vllm.config import VllmConfig

from tests.encoder import stand_ins
from tests.encoder.tower import (
    CLIPS,
    Inputs,
    Sizes,
    Towers,
    config,
    each,
    keep_mask,
    mel_batches,
    with_model,
)
from vllm_mmc.encoder.install import EncoderPlan, install
from vllm_mmc.models.gemma_audio import ENCODER_REWRITES as GEMMA_AUDIO

TOWERS = Towers()


# ---------------------------------------------------------------- conformers


GRANITE: dict[str, Any] = {
    "context_size": 20,
    "max_pos_emb": 32,
    "input_dim": 32,
    "hidden_dim": 64,
    "num_layers": 4,
    "num_heads": 4,
    "dim_head": 16,
    "feedforward_mult": 2,
    "conv_expansion_factor": 2,
    "conv_kernel_size": 5,
    "output_dim": 42,
}


def _granite_clips(clips: int, frames: int) -> Inputs:
    return (torch.randn(clips, frames, 32),), {}


@TOWERS.add(
    _granite_clips,
    Sizes(
        survey=[(3, 113), (1, 7), (2, 50)],
        further=[
            (2, 60),
            (1, 33),
            (3, 73),
            (1, 40),
            (2, 20),
            (5, 91),
            (1, 100),
            (4, 41),
            (2, 19),
            (3, 1),
        ],
    ),
    {"GraniteSpeechConformerBlock": 4},
    graphs=1,
)
def granite_speech(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.granite_speech import GraniteSpeechCTCEncoder

    return GraniteSpeechCTCEncoder(config(**GRANITE), prefix="encoder")


@TOWERS.add(
    _granite_clips,
    Sizes(
        survey=[(3, 113), (1, 7), (2, 50)],
        further=[
            (2, 60),
            (4, 33),
            (1, 73),
            (2, 40),
            (5, 91),
            (6, 41),
            (1, 20),
            (3, 1),
        ],
    ),
    {"GraniteSpeechConformerBlock": 4},
    graphs=1,
)
def granite_speech_plus(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.granite_speech_plus import (
        GraniteSpeechPlusCTCEncoder,
    )

    made = config(**GRANITE, cat_hidden_layers=[0, 2])
    return GraniteSpeechPlusCTCEncoder(made, prefix="encoder")


def _gemma3n_clips(*lengths: int) -> Inputs:
    frames = max(lengths)
    mels = torch.randn(len(lengths), frames, 32)
    return (mels, ~keep_mask(frames, lengths)), {}


@TOWERS.add(_gemma3n_clips, CLIPS, {"CompiledGemma3nAudioConformerBlock": 3}, graphs=1)
def gemma3n_audio(vllm_config: VllmConfig) -> nn.Module:
    """Ours; tests/models/test_gemma_audio.py compares it with Hugging Face's."""
    tower = AutoModel.from_config(
        Gemma3nAudioConfig(
            hidden_size=64,
            conf_num_attention_heads=4,
            conf_num_hidden_layers=3,
            input_feat_size=32,
            sscp_conv_channel_size=(16, 8),
            conf_attention_chunk_size=12,
            conf_attention_context_left=13,
        )
    )
    return install(tower, EncoderPlan(classes=GEMMA_AUDIO), vllm_config)


def _gemma4_clips(*lengths: int) -> Inputs:
    frames = max(lengths)
    mels = torch.randn(len(lengths), frames, 16)
    return (mels, keep_mask(frames, lengths)), {}


@TOWERS.add(_gemma4_clips, CLIPS, {"CompiledGemma4AudioLayer": 3}, graphs=1)
def gemma4_audio(vllm_config: VllmConfig) -> nn.Module:
    """Ours; tests/models/test_gemma_audio.py compares it with Hugging Face's."""
    from vllm.model_executor.models.gemma4_mm import recursive_replace_linear

    tower = AutoModel.from_config(
        Gemma4AudioConfig(
            hidden_size=64,
            num_attention_heads=4,
            num_hidden_layers=3,
            subsampling_conv_channels=[16, 8],
            output_proj_dims=96,
        )
    )
    tower.post_init()
    recursive_replace_linear(tower, None, prefix="audio_tower")
    return install(tower, EncoderPlan(classes=GEMMA_AUDIO), vllm_config)


def _parakeet_clips(*lengths: int) -> Inputs:
    frames = max(lengths)
    return (), {
        "input_features": torch.randn(len(lengths), frames, 80),
        "attention_mask": keep_mask(frames, lengths),
    }


@TOWERS.add(_parakeet_clips, CLIPS, {"ParakeetEncoderBlock": 3}, graphs=1)
def parakeet(vllm_config: VllmConfig) -> nn.Module:
    return ParakeetEncoder(
        ParakeetEncoderConfig(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            num_mel_bins=80,
            subsampling_conv_channels=16,
            conv_kernel_size=9,
            dropout=0.0,
            dropout_positions=0.0,
            layerdrop=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
        )
    )


@TOWERS.add(
    mel_batches(80, frames_first=True),
    CLIPS,
    {"RelPosEmbConformerBlock": 3},
    graphs=1,
)
def fireredasr2(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.conformer_encoder import ConformerEncoder

    return ConformerEncoder(
        idim=80, n_layers_enc=3, n_head=4, d_model=64, kernel_size=9, pe_maxlen=500
    )


@TOWERS.add(
    mel_batches(80),
    Sizes(
        survey=[(400, 120, 55), (40,), (130, 64)],
        further=[
            (260,),
            (200, 120),
            (150, 60, 99),
            (48,),
            (192,),
            (96, 20, 50, 90),
            (36,),
            (77, 77),
        ],
    ),
    {"ConformerLayer": 3},
    graphs=1,
)
def cohere_asr(vllm_config: VllmConfig) -> nn.Module:
    with stand_ins.torchaudio():
        from vllm.model_executor.models.cohere_asr import ConformerEncoder

    encoder = {
        "feat_in": 80,
        "n_layers": 3,
        "d_model": 64,
        "feat_out": -1,
        "causal_downsampling": False,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": 16,
        "ff_expansion_factor": 2,
        "self_attention_model": "rel_pos",
        "n_heads": 4,
        "att_context_size": [-1, -1],
        "xscaling": False,
        "untie_biases": True,
        "pos_emb_max_len": 500,
        "conv_kernel_size": 9,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "use_bias": True,
    }
    made = with_model(vllm_config, config(encoder=encoder))
    return ConformerEncoder(vllm_config=made)


@TOWERS.add(
    lambda frames: ((torch.randn(1, frames, 80), None), {}),
    Sizes(
        survey=each(730, 80, 400), further=each(620, 64, 401, 80, 333, 1000, 97, 512)
    ),
    {"ConformerEncoderLayer": 3},
    graphs=3,
)
def phi4mm_audio(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.phi4mm_audio import ConformerEncoder

    return ConformerEncoder(
        input_size=80,
        chunk_size=-1,
        left_chunk=18,
        num_lang=None,
        attention_dim=64,
        attention_heads=4,
        linear_units=96,
        num_blocks=3,
        dropout_rate=0.0,
        causal=True,
        activation="swish",
        attention_group_size=1,
        bias_in_glu=True,
        conv_activation="swish",
        conv_glu_type="swish",
        ext_pw_kernel_size=1,
        ext_pw_out_channel=64,
        depthwise_seperable_out_channel=64,
        depthwise_multiplier=1,
        kernel_size=3,
        batch_norm=False,
        chunk_se=0,
        cnn_out=-1,
        cnn_layer_norm=False,
        input_layer="nemo_conv",
        time_reduction=8,
        nemo_conv_settings={"conv_channels": 64},
        relative_attention_bias_args={"type": "t5", "t5_bias_max_distance": 50},
        encoder_embedding_config={"input_size": 80},
    )


# ---------------------------------------------------------------- others

SHORT_CLIPS = Sizes(
    survey=[(120, 50, 7), (9,), (50, 30)],
    further=[
        (44,),
        (70, 20, 33),
        (20, 20),
        (120,),
        (33, 1, 20, 5),
        (5,),
        (61, 62),
        (17,),
    ],
)


@TOWERS.add(
    mel_batches(56, frames_first=True), SHORT_CLIPS, {"EncoderLayerSANM": 6}, graphs=2
)
def funasr(vllm_config: VllmConfig) -> nn.Module:
    with stand_ins.torchaudio():
        from vllm.model_executor.models.funasr import SenseVoiceEncoderSmall

    return SenseVoiceEncoderSmall(
        input_size=56,
        output_size=64,
        attention_heads=4,
        linear_units=128,
        num_blocks=4,
        tp_blocks=3,
        kernel_size=5,
        sanm_shift=0,
    )


@TOWERS.add(
    mel_batches(64, frames_first=True), SHORT_CLIPS, {"EncoderLayer": 3}, graphs=1
)
def funasr_adaptor(vllm_config: VllmConfig) -> nn.Module:
    with stand_ins.torchaudio():
        from vllm.model_executor.models.funasr import Transformer

    return Transformer(
        downsample_rate=1,
        encoder_dim=64,
        llm_dim=64,
        ffn_dim=128,
        n_layer=3,
        attention_heads=4,
    )


def _spectrograms(*lengths: int) -> Inputs:
    """Lengths are counted in frames of 160 samples."""
    (mels, frames), _ = mel_batches(32)(*lengths)
    return (mels, 160 * frames), {}


@TOWERS.add(
    _spectrograms,
    Sizes(
        survey=[(438, 312, 56), (38,), (101, 57)],
        further=[
            (126,),
            (251, 101, 138),
            (201, 201),
            (38,),
            (76, 50, 44, 76),
            (626,),
            (200,),
            (90, 33),
        ],
    ),
    {"DashengBlock": 3},
    graphs=2,
)
def midashenglm(vllm_config: VllmConfig) -> nn.Module:
    """Without its front end, which needs torchaudio: calls give the spectrograms."""
    with stand_ins.torchaudio():
        from vllm.model_executor.models.midashenglm import DashengAudioTransformer

    tower = DashengAudioTransformer(
        config(
            target_length=200,
            hop_length=160,
            n_mels=32,
            embed_dim=64,
            input_channels=1,
            patch_size=(32, 4),
            patch_stride=(32, 4),
            num_heads=4,
            mlp_ratio=2.0,
            qkv_bias=True,
            init_values=None,
            depth=3,
            win_length=512,
            n_fft=512,
            f_min=0.0,
            f_max=8000.0,
            sample_rate=16000,
            center=True,
        )
    )
    tower.front_end = nn.Identity()
    return tower


class _Encode(nn.Module):
    """MiMo's encoder up to its quantizer, whose codes jump at the last digit."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, mels: torch.Tensor, lengths: torch.Tensor) -> Any:
        return self.encoder.encode(mels, lengths, use_quantizer=False)


@TOWERS.add(
    lambda *lengths: ((torch.randn(sum(lengths), 80), torch.tensor(lengths)), {}),
    Sizes(
        survey=[(300, 120), (20,), (160, 33, 80)],
        further=[
            (90,),
            (200,),
            (33, 31),
            (20,),
            (100, 50, 25, 75),
            (61,),
            (47, 160),
            (121, 12, 57),
        ],
    ),
    {"AudioEncoderTransformerLayer": 3},
    graphs=1,
)
def mimo_audio(vllm_config: VllmConfig) -> nn.Module:
    """Its attention exists for CUDA only; here it is `stand_ins.flash_attention`."""
    from vllm.model_executor.models.mimo_audio import (
        AudioEncoder,
        MiMoAudioTokenizerConfig,
    )

    return _Encode(
        AudioEncoder(
            MiMoAudioTokenizerConfig(
                d_model=64,
                encoder_layers=3,
                encoder_attention_heads=4,
                encoder_ffn_dim=128,
                n_mels=80,
                avg_pooler=2,
                num_quantizers=0,
                encoder_skip_layer_id=1,
                kernel_size=3,
                stride_size=2,
            )
        )
    )


def _groups(clips: int, groups: int) -> Inputs:
    """Codes, and for all clips but the last, features; a group is five of either."""
    codes = torch.randint(32, (clips, 5 * groups))
    features = torch.randn(max(clips - 1, 1), 5 * groups, 64)
    exists = torch.arange(clips) < len(features)
    return (codes, features), {"feature_exist_mask": exists}


@TOWERS.add(
    _groups,
    Sizes(
        survey=[(6, 40), (1, 3), (3, 17)],
        further=[
            (1, 1),
            (2, 8),
            (4, 21),
            (1, 40),
            (7, 5),
            (3, 17),
            (1, 26),
            (5, 2),
        ],
    ),
    {},
    graphs=0,
)
def funaudiochat_discrete(vllm_config: VllmConfig) -> nn.Module:
    """A table and two products: nothing in it repeats."""
    from vllm.model_executor.models.funaudiochat import FunAudioChatDiscreteEncoder

    return FunAudioChatDiscreteEncoder(
        config(pad_token_id=0, group_size=5, output_dim=64, codebook_size=32)
    )
