# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny towers whose images have one size, or are cut into tiles of one size."""

from typing import Any

import torch
import torch.nn as nn
from transformers import (
    Aimv2VisionConfig,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    SiglipVisionConfig,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.llama4.configuration_llama4 import Llama4VisionConfig
from vllm.config import VllmConfig

from tests.encoder.tower import (
    BATCHES,
    IMAGE,
    VISION,
    Inputs,
    Sizes,
    Towers,
    config,
    each,
    images,
    without_onednn,
)

TOWERS = Towers()

IMAGES = images(3, 112, 112)
FEW_BATCHES = Sizes(survey=each(6, 1, 3), further=each(2, 1, 4, 5, 7, 8, 9, 12))
INTERN: dict[str, Any] = IMAGE | {
    "intermediate_size": 128,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "initializer_factor": 0.1,
    "num_channels": 3,
}


@TOWERS.add(IMAGES, BATCHES, {"SiglipEncoderLayer": 3}, graphs=2)
def siglip(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.siglip import SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**IMAGE))


@TOWERS.add(IMAGES, BATCHES, {"CLIPEncoderLayer": 3}, graphs=2)
def clip(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.clip import CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(**IMAGE))


@TOWERS.add(IMAGES, BATCHES, {"InternVisionEncoderLayer": 3}, graphs=2)
def intern_vit(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.intern_vit import InternVisionModel

    return InternVisionModel(config(**INTERN, qkv_bias=True, qk_normalization=False))


@TOWERS.add(IMAGES, BATCHES, {"InternS1VisionLayer": 3}, graphs=2)
def interns1_vit(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.interns1_vit import InternS1VisionModel

    sizes = {"image_size": (112, 112), "patch_size": (14, 14)}
    return InternS1VisionModel(
        config(
            **INTERN | sizes,
            attention_bias=True,
            use_qk_norm=False,
            use_mask_token=False,
            use_absolute_position_embeddings=True,
            layer_scale_init_value=0.1,
            projection_dropout=0.0,
            attention_dropout=0.0,
            hidden_dropout_prob=0.0,
            use_mean_pooling=False,
        )
    )


@TOWERS.add(IMAGES, BATCHES, {"BlipEncoderLayer": 3}, graphs=2)
def blip(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.blip import BlipVisionModel

    return BlipVisionModel(Blip2VisionConfig(**IMAGE))


@TOWERS.add(IMAGES, BATCHES, {"Step3VisionEncoderLayer": 3}, graphs=2)
def step3_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.step3_vl import Step3VisionTransformer

    return Step3VisionTransformer(
        config(
            **IMAGE,
            output_hidden_size=64,
            num_channels=3,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            understand_projector_stride=2,
        )
    )


@TOWERS.add(IMAGES, BATCHES, {"Llama4VisionEncoderLayer": 3}, graphs=5)
def mllama4(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.mllama4 import Llama4VisionModel

    tower = Llama4VisionModel(
        Llama4VisionConfig(
            **IMAGE | {"intermediate_size": 256},
            vision_output_dim=64,
            pixel_shuffle_ratio=0.5,
            projector_input_dim=64,
            projector_output_dim=64,
        )
    )
    return without_onednn(tower, tower.patch_embedding.linear)


@TOWERS.add(IMAGES, BATCHES, {"EVA2CLIPTransformerLayer": 3}, graphs=4)
def eva2clip(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.glm4v import EVA2CLIPModel

    vision = IMAGE | {
        "num_heads": 4,
        "num_positions": 65,
        "in_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "scaling_factor": 8,
        "dropout_prob": 0.0,
    }
    return EVA2CLIPModel(
        config(vision_config=vision, hidden_size=64, ffn_hidden_size=96)
    )


@TOWERS.add(IMAGES, BATCHES, {"Moondream3VisionBlock": 3}, graphs=1)
def moondream3(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.moondream3 import Moondream3VisionEncoder

    return Moondream3VisionEncoder(
        config(
            enc_patch_size=14,
            enc_dim=64,
            crop_size=112,
            enc_ff_dim=96,
            enc_n_heads=4,
            enc_n_layers=3,
        )
    )


@TOWERS.add(IMAGES, BATCHES, {"PerceptionEncoderVisionBlock": 3}, graphs=1)
def step_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.layers.activation import get_act_fn
    from vllm.model_executor.models.step_vl import PerceptionEncoder

    return PerceptionEncoder(
        config(
            patch_size=14,
            output_dim=None,
            heads=4,
            width=64,
            layers=3,
            use_abs_posemb=True,
            use_cls_token=False,
            use_rope2d=True,
            image_size=112,
            use_ln_pre=True,
            use_ln_post=True,
            mlp_ratio=2.0,
            ls_init_value=0.1,
        ),
        get_act_fn("gelu"),
    )


@TOWERS.add(images(16, 588), BATCHES, {"ResidualAttentionBlock": 3}, graphs=1)
def molmo(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.molmo import VisionBackboneConfig, VisionTransformer

    return VisionTransformer(
        VisionBackboneConfig(
            image_default_input_size=(56, 56),
            image_emb_dim=64,
            image_num_heads=4,
            image_num_key_value_heads=4,
            image_num_layers=3,
            image_mlp_dim=96,
            image_num_pos=17,
        )
    )


@TOWERS.add(images(16, 588), BATCHES, {"Molmo2VisionBlock": 3}, graphs=1)
def molmo2(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.molmo2 import Molmo2VisionTransformer, VitConfig

    return Molmo2VisionTransformer(
        VitConfig(
            **VISION,
            num_key_value_heads=4,
            head_dim=16,
            image_default_input_size=(56, 56),
            image_num_pos=16,
        )
    )


def _radio() -> nn.Module:
    from vllm.model_executor.models.radio import RadioInternVisionModel

    return RadioInternVisionModel(
        config(
            **INTERN | {"patch_size": 16},
            qkv_bias=True,
            qk_normalization=False,
            cpe_max_size=256,
            video_temporal_patch_size=1,
            teachers=[{"name": "a"}],
            cls_token_per_teacher=True,
            register_multiple=4,
            separate_video_embedder=False,
        )
    )


@TOWERS.add(IMAGES, BATCHES, {"RadioVisionEncoderLayer": 3}, graphs=2)
def radio_tile(vllm_config: VllmConfig) -> nn.Module:
    return _radio()


def _radio_patches(*items: tuple[int, int]) -> Inputs:
    total = sum((h // 16) * (w // 16) for h, w in items)
    return (torch.randn(1, total, 768),), {"imgs_sizes": list(items)}


@TOWERS.add(
    _radio_patches,
    Sizes(
        survey=[((128, 128), (64, 96)), ((32, 32),), ((64, 96), (32, 64), (48, 48))],
        further=[
            ((64, 64),),
            ((32, 32), (32, 48)),
            ((96, 96),),
            ((16, 32),),
            ((48, 80), (32, 32), (64, 32), (16, 16)),
            ((112, 112),),
            ((32, 32),),
            ((80, 16), (16, 112)),
        ],
    ),
    {"RadioVisionEncoderLayer": 3},
    graphs=9,
)
def radio_dyn(vllm_config: VllmConfig) -> nn.Module:
    return _radio()


# ---------------------------------------------------------------- Idefics2 and kin


def _masked_images(batch: int, size: int) -> Inputs:
    side = size // 14
    mask = torch.ones(batch, side, side, dtype=torch.bool)
    return (torch.randn(batch, 3, size, size),), {"patch_attention_mask": mask}


MASKED = Sizes(
    survey=[(6, 112), (1, 56), (3, 84)],
    further=[
        (2, 112),
        (1, 112),
        (5, 98),
        (4, 28),
        (1, 84),
        (7, 42),
        (2, 56),
        (3, 70),
    ],
)


@TOWERS.add(_masked_images, MASKED, {"Idefics2EncoderLayer": 3}, graphs=2)
def idefics2(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.idefics2_vision_model import (
        Idefics2VisionTransformer,
    )

    return Idefics2VisionTransformer(Idefics2VisionConfig(**IMAGE))


@TOWERS.add(_masked_images, MASKED, {"Idefics2EncoderLayer": 3}, graphs=2)
def aria(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.aria import AriaVisionTransformer

    return AriaVisionTransformer(Idefics2VisionConfig(**IMAGE))


# ---------------------------------------------------------------- DeepSeek-OCR


def _squares(batch: int, size: int) -> Inputs:
    return (torch.randn(batch, 3, size, size),), {}


@TOWERS.add(
    _squares,
    Sizes(
        survey=[(4, 128), (1, 64), (2, 96)],
        further=[
            (1, 128),
            (2, 128),
            (3, 96),
            (1, 96),
            (5, 128),
            (2, 64),
            (3, 64),
            (6, 96),
        ],
    ),
    {"Block": 4},
    graphs=5,
)
def deepencoder_sam(vllm_config: VllmConfig) -> nn.Module:
    """Blocks 0 and 2 have windows, 1 and 3 have none: two structures of one class."""
    from vllm.model_executor.models.deepencoder import ImageEncoderViT

    return ImageEncoderViT(
        img_size=128,
        patch_size=16,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
        out_chans=256,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1, 3),
        last_conv_output=64,
    )


def _images_and_patches(batch: int) -> Inputs:
    return (torch.randn(batch, 3, 112, 112), torch.randn(batch, 64, 8, 8)), {}


@TOWERS.add(_images_and_patches, FEW_BATCHES, {"CLIPEncoderLayer": 3}, graphs=2)
def deepclip(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.deepencoder import DeepCLIPVisionTransformer

    return DeepCLIPVisionTransformer(CLIPVisionConfig(**IMAGE))


@TOWERS.add(
    lambda batch, side: ((torch.randn(batch, 64, side, side),), {}),
    Sizes(
        survey=[(4, 16), (1, 12), (2, 12)],
        further=[
            (1, 16),
            (3, 12),
            (2, 16),
            (5, 12),
            (3, 16),
            (1, 12),
            (7, 12),
            (4, 12),
        ],
    ),
    {},
    graphs=0,
)
def deepencoder2_resampler(vllm_config: VllmConfig) -> nn.Module:
    """DeepSeek-OCR2's: a Qwen2 whose 144 or 256 queries follow the patches.

    Every call gives its layers a new key-value cache, in which each has a place of its
    own and which the call fills: a survey refuses the layers.
    """
    from vllm.model_executor.models.deepencoder2 import build_qwen2_decoder_as_encoder

    return build_qwen2_decoder_as_encoder(
        decoder_layer=3,
        hidden_dimension=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
    )


# ---------------------------------------------------------------- after a tower


@TOWERS.add(
    lambda batch: ((torch.randn(batch, 8, 64), torch.randn(batch, 65, 64)), {}),
    FEW_BATCHES,
    {"Blip2QFormerLayer": 4},
    graphs=2,
)
def blip2_qformer(vllm_config: VllmConfig) -> nn.Module:
    """Every second layer has cross-attention: two structures of one class."""
    from vllm.model_executor.models.blip2 import Blip2QFormerModel

    qformer = Blip2QFormerConfig(
        **VISION | {"num_hidden_layers": 4},
        encoder_hidden_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Blip2QFormerModel(qformer, quant_config=None, cache_config=None)


def _ovis(backbone: Any) -> nn.Module:
    from vllm.model_executor.models.ovis import VisualTokenizer

    return VisualTokenizer(
        config(
            backbone_config=backbone,
            vocab_size=101,
            hidden_stride=2,
            drop_cls_token=False,
            tokenize_function="softmax",
        )
    )


@TOWERS.add(IMAGES, BATCHES, {"SiglipEncoderLayer": 3}, graphs=2)
def ovis_siglip(vllm_config: VllmConfig) -> nn.Module:
    return _ovis(SiglipVisionConfig(**IMAGE))


@TOWERS.add(IMAGES, BATCHES, {"AIMv2Block": 3}, graphs=2)
def ovis_aimv2(vllm_config: VllmConfig) -> nn.Module:
    return _ovis(Aimv2VisionConfig(**IMAGE))


class _WithConnector(nn.Module):
    """A vision model and its connector, as ColModernVBertForRetrieval calls them."""

    def __init__(self, vision_model: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.connector = connector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.connector(self.vision_model(pixel_values))


@TOWERS.add(IMAGES, BATCHES, {"SiglipEncoderLayer": 3}, graphs=3)
def colmodernvbert(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.colmodernvbert import ColModernVBertConnector
    from vllm.model_executor.models.siglip import SiglipVisionModel

    made = config(
        vision_config=SiglipVisionConfig(**IMAGE),
        pixel_shuffle_factor=2,
        # vLLM 0.33 reads the second of them.
        hidden_size=96,
        text_config=config(hidden_size=96),
    )
    return _WithConnector(
        SiglipVisionModel(made.vision_config), ColModernVBertConnector(made)
    )
