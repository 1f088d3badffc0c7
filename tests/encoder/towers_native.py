# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny towers that take images, and videos, of any size."""

from typing import Any

import torch
import torch.nn as nn
from transformers import (
    AutoModel,
    PixtralVisionConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.models.glm4v.configuration_glm4v import (
    Glm4vTextConfig,
    Glm4vVisionConfig,
)
from transformers.models.glm_ocr.configuration_glm_ocr import (
    GlmOcrTextConfig,
    GlmOcrVisionConfig,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeVisionEncoderConfig,
)
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from vllm.config import VllmConfig

from mmc_testing.release import is_before
from tests.encoder.tower import (
    GRIDS,
    IMAGE,
    IMAGE_GRIDS,
    PIXELS,
    PLANES,
    QWEN,
    VISION,
    Inputs,
    Sizes,
    Towers,
    config,
    cumulative,
    patches,
    pixel_lists,
    without_onednn,
)

TOWERS = Towers()

# Values of a patch: 3 channels, 1 or 2 frames, 14 or 16 pixels squared.
PATCH_14 = 3 * 14**2
PATCH_14_2 = 3 * 2 * 14**2
PATCH_16_2 = 3 * 2 * 16**2

DEEPSTACK: dict[str, Any] = QWEN | {
    "patch_size": 16,
    "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 64,
}
WINDOWED: dict[str, Any] = QWEN | {
    "patch_size": 14,
    "fullatt_block_indexes": [1],
    "window_size": 56,
}
SIGLIP2: dict[str, Any] = VISION | {"num_patches": 64, "patch_size": 16}

# ---------------------------------------------------------------- Qwen's and kin


@TOWERS.add(patches(PATCH_14_2), GRIDS, {"Qwen2VisionBlock": 3}, graphs=4)
def qwen2_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.qwen2_vl import Qwen2VisionTransformer

    sizes = {"depth": 3, "embed_dim": 64, "hidden_size": 96, "num_heads": 4}
    return Qwen2VisionTransformer(Qwen2VLVisionConfig(**sizes, mlp_ratio=2))


@TOWERS.add(patches(PATCH_14_2), GRIDS, {"Qwen2_5_VisionBlock": 3}, graphs=4)
def qwen2_5_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VisionTransformer

    return Qwen2_5_VisionTransformer(Qwen2_5_VLVisionConfig(**WINDOWED))


@TOWERS.add(
    patches(PATCH_16_2),
    GRIDS,
    {"Qwen3_VisionBlock": 3, "Qwen3_VisionPatchMerger": 2},
    graphs=5,
)
def qwen3_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.qwen3_vl import Qwen3_VisionTransformer

    return Qwen3_VisionTransformer(Qwen3VLVisionConfig(**DEEPSTACK))


@TOWERS.add(
    patches(PATCH_16_2, grids=torch.tensor),
    GRIDS,
    {"Qwen3_VisionBlock": 3, "Qwen3_VisionPatchMerger": 2},
    graphs=5,
)
def qwen3_omni_vision(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.qwen3_omni_moe_thinker import (
        Qwen3Omni_VisionTransformer,
    )

    return Qwen3Omni_VisionTransformer(
        Qwen3OmniMoeVisionEncoderConfig(
            **DEEPSTACK, image_size=128, apply_vit_abs_pos_embed=True
        )
    )


@TOWERS.add(patches(PATCH_16_2), GRIDS, {"Qwen3_VisionBlock": 3}, graphs=4)
def bailing_moe_v3_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.bailing_moe_v3_vl import (
        BailingMoeV3VisionTransformer,
    )

    return BailingMoeV3VisionTransformer(Qwen3VLVisionConfig(**DEEPSTACK))


@TOWERS.add(patches(PATCH_14_2), GRIDS, {"Exaone4_5_VisionBlock": 3}, graphs=4)
def exaone4_5(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.exaone4_5 import EXAONE4_5_VisionTransformer

    vision = Qwen2_5_VLVisionConfig(**WINDOWED)
    vision.num_key_value_heads = 2
    return EXAONE4_5_VisionTransformer(vision)


@TOWERS.add(
    patches(PATCH_16_2),
    GRIDS,
    {"Cohere_VisionBlock": 3, "Cohere_VisionPatchMerger": 2},
    graphs=5,
)
def cohere_compass(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.cohere_compass import Cohere_VisionTransformer

    return Cohere_VisionTransformer(
        config(
            **DEEPSTACK,
            temporal_patch_size=2,
            spatial_merge_size=2,
            in_channels=3,
            hidden_act="gelu_pytorch_tanh",
        )
    )


@TOWERS.add(
    patches(PATCH_14, grids=torch.tensor), GRIDS, {"Ernie4_5_VisionBlock": 3}, graphs=2
)
def ernie45_vl(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.ernie45_vl import Ernie4_5_VisionTransformer

    return Ernie4_5_VisionTransformer(
        config(
            patch_size=14,
            in_channels=3,
            embed_dim=64,
            hidden_size=64,
            depth=3,
            num_heads=4,
            mlp_ratio=2,
            spatial_merge_size=2,
            hidden_act="quick_gelu",
        )
    )


@TOWERS.add(patches(PATCH_14), GRIDS, {"DotsVisionBlock": 3}, graphs=4)
def dots_ocr(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.dots_ocr import DotsVisionTransformer
    from vllm.transformers_utils.configs.dotsocr import DotsVisionConfig

    sizes = VISION | {"hidden_size": 96}
    return DotsVisionTransformer(DotsVisionConfig(**sizes, embed_dim=64, patch_size=14))


@TOWERS.add(
    patches(PATCH_16_2, grids=torch.tensor), GRIDS, {"MiMoVisionBlock": 3}, graphs=4
)
def mimo_vision(vllm_config: VllmConfig) -> nn.Module:
    """With full attention in all blocks: that of its windows is in Triton."""
    from vllm.model_executor.models.mimo_v2_omni import MiMoVisionTransformer

    return MiMoVisionTransformer(
        config(
            **QWEN,
            num_key_value_heads=2,
            qk_channels=16,
            kv_channels=16,
            patch_size=16,
            temporal_patch_size=2,
            spatial_merge_size=2,
            in_channels=3,
            fullatt_block_indexes=[0, 1, 2],
            vit_window_attn_types=[-1, -1, -1],
            visual_token_window_size=8,
            use_sink=True,
            hidden_act="silu",
        )
    )


# ---------------------------------------------------------------- GLM's

GLM: dict[str, Any] = QWEN | {"patch_size": 14, "image_size": 112}


@TOWERS.add(patches(PATCH_14_2), GRIDS, {"Glm4vVisionBlock": 3}, graphs=5)
def glm4_1v(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.glm4_1v import Glm4vVisionTransformer

    return Glm4vVisionTransformer(Glm4vTextConfig(), Glm4vVisionConfig(**GLM))


@TOWERS.add(patches(PATCH_14_2), GRIDS, {"GlmOcrVisionBlock": 3}, graphs=3)
def glm_ocr(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.glm_ocr import GlmOcrVisionTransformer

    return GlmOcrVisionTransformer(GlmOcrTextConfig(), GlmOcrVisionConfig(**GLM))


# ---------------------------------------------------------------- Kimi's and kin


def _moonvit_patches(*items: tuple[int, int]) -> Inputs:
    total = sum(h * w for h, w in items)
    return (torch.randn(total, 3, 14, 14), torch.tensor(items)), {}


def _without_frames(sizes: Sizes) -> Sizes:
    """Returns sizes of (height, width) from those of one frame."""

    def cut(every: Any) -> Any:
        return [tuple(item[1:] for item in size) for size in every]

    return Sizes(cut(sizes.survey), cut(sizes.further))


EVEN_PLANES = _without_frames(IMAGE_GRIDS)


@TOWERS.add(_moonvit_patches, EVEN_PLANES, {"MoonVitEncoderLayer": 3}, graphs=1)
def moonvit(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.moonvit import MoonVitPretrainedModel
    from vllm.transformers_utils.configs.moonvit import MoonViTConfig

    return MoonVitPretrainedModel(
        MoonViTConfig(
            **VISION,
            patch_size=14,
            init_pos_emb_height=8,
            init_pos_emb_width=8,
            merge_kernel_size=(2, 2),
        )
    )


def _kimi_patches(*items: tuple[int, int, int]) -> Inputs:
    total = sum(t * h * w for t, h, w in items)
    return (torch.randn(total, 3, 14, 14), [list(item) for item in items]), {}


@TOWERS.add(
    _kimi_patches,
    Sizes(
        survey=[
            ((1, 16, 24), (1, 8, 12)),
            ((1, 4, 4),),
            ((1, 8, 8), (2, 4, 8), (1, 6, 10)),
        ],
        further=[
            ((1, 4, 4),),
            ((1, 8, 12),),
            ((1, 6, 6), (1, 6, 6)),
            ((1, 16, 16),),
            ((1, 4, 6), (3, 4, 6), (1, 8, 8), (1, 12, 4)),
            ((1, 10, 14),),
            ((1, 2, 2),),
            ((4, 2, 8), (1, 14, 2)),
        ],
    ),
    {"MoonViTEncoderLayer": 3},
    graphs=7,
)
def kimi_k25(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.kimi_k25_vit import MoonViT3dPretrainedModel

    return MoonViT3dPretrainedModel(
        config(
            **VISION,
            vt_hidden_size=64,
            vt_num_hidden_layers=3,
            vt_num_attention_heads=4,
            vt_intermediate_size=96,
            patch_size=14,
            merge_kernel_size=(2, 2),
            init_pos_emb_height=8,
            init_pos_emb_width=8,
            init_pos_emb_time=4,
            hidden_act="gelu_pytorch_tanh",
            pos_emb_type="divided_fixed",
            merge_type="sd2_tpool",
            video_attn_type="spatial_temporal",
        )
    )


# ---------------------------------------------------------------- Pixtral and kin


@TOWERS.add(pixel_lists, PIXELS, {"TransformerBlock": 3}, graphs=2)
def pixtral(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.pixtral import VisionEncoderArgs, VisionTransformer

    return VisionTransformer(
        VisionEncoderArgs(
            **VISION,
            num_channels=3,
            image_size=256,
            patch_size=16,
            rope_theta=1e4,
            image_token_id=10,
        )
    )


@TOWERS.add(pixel_lists, PIXELS, {"PixtralHFTransformerBlock": 3}, graphs=2)
def pixtral_hf(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.pixtral import PixtralHFVisionModel

    sizes = VISION | {"image_size": 256, "patch_size": 16}
    return PixtralHFVisionModel(PixtralVisionConfig(**sizes))


MUSE_PIXELS = Sizes(
    survey=[((224, 168), (56, 84)), ((28, 28),), ((56, 84), (28, 56), (56, 56))],
    further=[
        ((56, 56),),
        ((28, 28),),
        ((112, 112),),
        ((28, 56), (28, 56)),
        ((84, 140),),
        ((140, 28),),
        ((84, 28), (56, 84), (28, 28), (112, 84)),
        ((28, 196), (168, 28)),
    ],
)


@TOWERS.add(
    pixel_lists if is_before("0.33") else patches(PATCH_14, grids=torch.tensor),
    MUSE_PIXELS if is_before("0.33") else GRIDS,
    {"MuseGlimmerVisionBlock": 4},
    graphs=1,
)
def muse_glimmer(vllm_config: VllmConfig) -> nn.Module:
    """Every second block attends within squares of eight by eight patches."""
    from vllm.model_executor.models.muse_glimmer import MuseGlimmerVisionEncoder

    made = config(
        **VISION | {"num_hidden_layers": 4},
        patch_temporal=1,
        patch_size=14,
        merge_size=2,
        merge_kernel_size=2,
        pos_emb_height=8,
        pos_emb_width=8,
        layer_types=["sparse_attention", "full_attention"] * 2,
        output_dim=256,
    )
    if not is_before("0.33"):
        made = config(vision_config=made, out_hidden_size=256)
    return MuseGlimmerVisionEncoder(made)


# ---------------------------------------------------------------- SigLIP's and kin


def _siglip2_packed(*items: tuple[int, int]) -> Inputs:
    lengths = [h * w for h, w in items]
    return (torch.randn(1, sum(lengths), 768),), {
        "spatial_shapes": torch.tensor(items),
        "cu_seqlens": cumulative(lengths),
        "max_seqlen": torch.tensor(max(lengths), dtype=torch.int32),
    }


@TOWERS.add(_siglip2_packed, PLANES, {"Siglip2EncoderLayer": 3}, graphs=1)
def lfm2_siglip2(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.lfm2_siglip2 import Siglip2Model

    return Siglip2Model(Siglip2VisionConfig(**SIGLIP2))


@TOWERS.add(
    patches(768, grids=torch.tensor), GRIDS, {"Siglip2EncoderLayer": 3}, graphs=2
)
def cosmos3_edge(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.cosmos3_edge import Cosmos3EdgeVisionModel

    vision = Siglip2VisionConfig(**SIGLIP2, spatial_merge_size=2)
    if not is_before("0.33"):
        text = config(hidden_size=96)
        made = config(vision_config=vision, text_config=text, projector_hidden_size=128)
        return Cosmos3EdgeVisionModel(made)
    projector = config(
        spatial_merge_size=2,
        input_hidden_size=64,
        out_hidden_size=96,
        merger_intermediate_size=128,
    )
    return Cosmos3EdgeVisionModel(vision, projector)


def _isaac_patches(*items: tuple[int, int]) -> Inputs:
    total = sum(h * w for h, w in items)
    return ((torch.randn(total, 768), torch.tensor(items)),), {}


@TOWERS.add(_isaac_patches, EVEN_PLANES, {"Siglip2EncoderLayer": 3}, graphs=1)
def isaac(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.isaac import Siglip2VisionTransformer

    vision = Siglip2VisionConfig(**SIGLIP2)
    vision.pixel_shuffle_scale_factor = 2
    return Siglip2VisionTransformer(vision)


@TOWERS.add(
    patches(PATCH_14, grids=torch.tensor), GRIDS, {"Siglip2EncoderLayer": 3}, graphs=1
)
def ovis2_5(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.siglip2navit import Siglip2NavitModel

    return Siglip2NavitModel(
        config(
            **IMAGE,
            num_patches=-1,
            num_channels=3,
            temporal_patch_size=1,
            preserve_original_pe=True,
            hidden_stride=2,
            window_size=112,
            fullatt_block_indexes="1",
            use_rope=True,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
            attention_dropout=0.0,
        )
    )


def _placed_patches(*items: tuple[int, int]) -> Inputs:
    lengths = [h * w for h, w in items]
    return (), {
        "pixel_values": torch.randn(1, sum(lengths), 3, 14, 14),
        "image_grid_thw": [(1, h, w) for h, w in items],
        "position_ids": torch.cat([torch.arange(length) for length in lengths]),
        "interpolate_pos_encoding": True,
        "cu_seqlens": cumulative(lengths),
    }


def _keye_patches(*items: tuple[int, int]) -> Inputs:
    args, kwargs = _placed_patches(*items)
    lengths = torch.tensor([h * w for h, w in items])
    return args, kwargs | {
        "sample_indices": torch.arange(len(items)).repeat_interleave(lengths),
        "use_rope": True,
        "vision_return_embed_list": False,
        "window_size": -1,
    }


@TOWERS.add(_keye_patches, PLANES, {"KeyeSiglipEncoderLayer": 3}, graphs=7)
def keye(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.keye import KeyeSiglipVisionModel

    return KeyeSiglipVisionModel(SiglipVisionConfig(**IMAGE))


@TOWERS.add(_placed_patches, PLANES, {"SiglipEncoderLayer": 3}, graphs=7)
def paddleocr(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.paddleocr_vl import SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**IMAGE))


# ---------------------------------------------------------------- others


def _gemma4_patches(batch: int, height: int, width: int, padding: int) -> Inputs:
    xs, ys = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    places = torch.stack([xs, ys], -1).reshape(-1, 2)
    places = torch.cat([places, torch.full((padding, 2), -1)])
    pixels = torch.randn(batch, height * width + padding, 768)
    return (pixels, places.repeat(batch, 1, 1)), {}


@TOWERS.add(
    _gemma4_patches,
    Sizes(
        survey=[(4, 16, 12, 16), (1, 4, 4, 0), (3, 8, 4, 16)],
        further=[
            (1, 6, 6, 0),
            (2, 4, 8, 0),
            (1, 4, 4, 0),
            (5, 8, 8, 32),
            (1, 2, 2, 0),
            (2, 12, 4, 4),
            (6, 4, 4, 8),
            (1, 6, 4, 12),
        ],
    ),
    {"Gemma4VisionEncoderLayer": 3},
    graphs=5,
)
def gemma4_vision(vllm_config: VllmConfig) -> nn.Module:
    return AutoModel.from_config(
        Gemma4VisionConfig(
            **VISION,
            num_key_value_heads=4,
            head_dim=16,
            patch_size=16,
            position_embedding_size=64,
            pooling_kernel_size=2,
        )
    )


def _positioned_patches(*items: tuple[int, int, int]) -> Inputs:
    args, kwargs = patches(PATCH_14, grids=torch.tensor)(*items)
    places = [torch.cartesian_prod(*map(torch.arange, item)) for item in items]
    return args, kwargs | {"patch_positions": torch.cat(places)}


@TOWERS.add(
    _positioned_patches, GRIDS, {"LlavaOnevision2VisionTowerBlock": 3}, graphs=4
)
def llava_onevision2(vllm_config: VllmConfig) -> nn.Module:
    from vllm.model_executor.models.llava_onevision2 import LlavaOnevision2VisionTower

    # A head is 32 wide, the least its three-dimensional rotary embedding can halve.
    vision = config(
        **VISION | {"hidden_size": 128},
        patch_size=14,
        spatial_merge_size=2,
        num_channels=3,
        frame_windows_size=2,
    )
    return LlavaOnevision2VisionTower(vision, text_hidden_size=64)


def _single_plane(height: int, width: int) -> Inputs:
    return (torch.randn(height * width, 3, 14, 14), height, width), {}


class _WithAligner(nn.Module):
    """DeepSeek-V4's tower and aligner, as its model calls them for one image."""

    def __init__(self, vision: nn.Module, aligner: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.aligner = aligner

    def forward(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return self.aligner(self.vision(patches, height, width), height, width)


@TOWERS.add(
    _single_plane,
    Sizes(
        survey=[(16, 12), (3, 3), (8, 5)],
        further=[
            (4, 4),
            (3, 3),
            (6, 9),
            (7, 7),
            (2, 11),
            (12, 3),
            (1, 5),
            (16, 12),
            (10, 14),
        ],
    ),
    {"DeepseekV4VisionBlock": 3},
    graphs=6,
)
def deepseek_v41(vllm_config: VllmConfig) -> nn.Module:
    from vllm.models.deepseek_v4.common.vision import DeepseekV4Aligner, DeepseekV4ViT

    made = config(
        vision_dim=64,
        vision_n_layers=3,
        vision_n_heads=4,
        vision_inter_dim=96,
        vision_patch_size=14,
        vision_rope_theta=1e4,
        vision_downsample_ratio=3,
        hidden_size=96,
    )
    aligner = DeepseekV4Aligner(made)
    return without_onednn(_WithAligner(DeepseekV4ViT(made), aligner), aligner.w1)
