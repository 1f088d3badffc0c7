# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny audio towers."""

from typing import Any

import torch
import torch.nn as nn
from transformers import (
    AutoModel,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    WhisperConfig,
)
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nAudioConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4AudioConfig
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

from tests.encoder import stand_ins
from tests.encoder.tower import (
    CLIPS,
    WHISPER,
    Inputs,
    Sizes,
    Towers,
    config,
    each,
    keep_mask,
    mel_batches,
    padding_bias,
    without_onednn,
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


def _with_lengths(mels: int, *, frames_first: bool = False) -> Any:
    """Returns what makes padded clips, and their lengths as a tensor."""
    batch = mel_batches(mels, frames_first=frames_first)
    return lambda *lengths: (batch(*lengths), {})


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


def _with_model(vllm_config: VllmConfig, hf_config: Any) -> VllmConfig:
    """Returns the config of an engine whose model has this Hugging Face config."""
    # The architecture is not looked at: it has to be one that vLLM knows.
    return vllm_config.with_hf_config(hf_config, architectures=["UltravoxModel"])


@TOWERS.add(
    lambda clips: (([torch.randn(80, 200) for _ in range(clips)],), {}),
    Sizes(survey=each(6, 1, 3), further=each(2, 1, 4, 5, 7, 8, 9, 3)),
    {"WhisperEncoderLayer": 3},
    graphs=1,
)
def whisper(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.whisper import WhisperEncoder

    return WhisperEncoder(vllm_config=_with_model(vllm_config, _whisper_config()))


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

    made = _with_model(vllm_config, _whisper_config())
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
    return VoxtralEncoderModel(_with_model(vllm_config, made))


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
    _with_lengths(64),
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


# ---------------------------------------------------------------- conformers


@TOWERS.add(
    lambda clips, frames: ((torch.randn(clips, frames, 32),), {}),
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
        ],
    ),
    {"GraniteSpeechConformerBlock": 4},
    graphs=8,
)
def granite_speech(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.granite_speech import GraniteSpeechCTCEncoder

    return GraniteSpeechCTCEncoder(
        config(
            context_size=20,
            max_pos_emb=32,
            input_dim=32,
            hidden_dim=64,
            num_layers=4,
            num_heads=4,
            dim_head=16,
            feedforward_mult=2,
            conv_expansion_factor=2,
            conv_kernel_size=5,
            output_dim=42,
        ),
        prefix="encoder",
    )


def _gemma3n_clips(*lengths: int) -> Inputs:
    frames = max(lengths)
    mels = torch.randn(len(lengths), frames, 32)
    return (mels, ~keep_mask(frames, lengths)), {}


@TOWERS.add(_gemma3n_clips, CLIPS, {"Gemma3nAudioConformerBlock": 3}, graphs=6)
def gemma3n_audio(vllm_config: VllmConfig) -> nn.Module:
    return AutoModel.from_config(
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


def _gemma4_clips(*lengths: int) -> Inputs:
    frames = max(lengths)
    mels = torch.randn(len(lengths), frames, 16)
    return (mels, keep_mask(frames, lengths)), {}


@TOWERS.add(_gemma4_clips, CLIPS, {"Gemma4AudioLayer": 3}, graphs=7)
def gemma4_audio(vllm_config: VllmConfig) -> nn.Module:
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
    ends = [layer.lconv1d.linear_end.linear for layer in tower.layers]
    return without_onednn(tower, *ends)


def _parakeet_clips(*lengths: int) -> Inputs:
    frames = max(lengths)
    return (), {
        "input_features": torch.randn(len(lengths), frames, 80),
        "attention_mask": keep_mask(frames, lengths),
    }


@TOWERS.add(_parakeet_clips, CLIPS, {"ParakeetEncoderBlock": 3}, graphs=3)
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
    _with_lengths(80, frames_first=True),
    CLIPS,
    {"RelPosEmbConformerBlock": 3},
    graphs=5,
)
def fireredasr2(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.conformer_encoder import ConformerEncoder

    return ConformerEncoder(
        idim=80, n_layers_enc=3, n_head=4, d_model=64, kernel_size=9, pe_maxlen=500
    )


@TOWERS.add(
    _with_lengths(80),
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
    graphs=3,
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
    made = _with_model(vllm_config, config(encoder=encoder))
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
    _with_lengths(56, frames_first=True), SHORT_CLIPS, {"EncoderLayerSANM": 7}, graphs=2
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
    _with_lengths(64, frames_first=True), SHORT_CLIPS, {"EncoderLayer": 3}, graphs=1
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
    mels, frames = mel_batches(32)(*lengths)
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
)
def funaudiochat_discrete(vllm_config: VllmConfig) -> nn.Module:
    """A table and two products: nothing in it repeats."""
    from vllm.model_executor.models.funaudiochat import FunAudioChatDiscreteEncoder

    return FunAudioChatDiscreteEncoder(
        config(pad_token_id=0, group_size=5, output_dim=64, codebook_size=32)
    )
