# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny towers whose modules are timm's."""

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
from transformers import AutoModel, Gemma3nVisionConfig, Qwen2VLVisionConfig
from vllm.config import VllmConfig

from mmc_testing.more_recipes import mobilenet_args
from tests.encoder.tower import (
    BATCHES,
    IMAGE_GRIDS,
    Inputs,
    Sizes,
    Towers,
    config,
    images,
    patches,
)

TOWERS = Towers()

VIT = {"embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2}


def _tiny(**sizes: object) -> AbstractContextManager[Any]:
    """Lets `timm.create_model` make models of these sizes, whatever their names say."""
    import timm

    create = timm.create_model
    return mock.patch.object(
        timm, "create_model", lambda name, **kw: create(name, **kw | sizes)
    )


class _DeepseekVL2(nn.Module):
    """A vision model and its projector, as DeepseekVLV2ForCausalLM calls them."""

    def __init__(self) -> None:
        from vllm.model_executor.models import deepseek_vl2

        super().__init__()
        model = deepseek_vl2.DeepseekVLV2ForCausalLM
        with _tiny(**VIT, img_size=112):
            self.vision = model._init_vision_module(self, None, None)
        self.projector = deepseek_vl2.MlpProjector(
            config(
                projector_type="downsample_mlp_gelu",
                depth=2,
                mlp_ratio=1,
                input_dim=64,
                n_embed=96,
                downsample_ratio=2,
                token_pooling=False,
            )
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projector(self.vision.forward_features(pixel_values))


@TOWERS.add(images(3, 112, 112), BATCHES, {"Block": 3}, graphs=4)
def deepseek_vl2(vllm_config: VllmConfig) -> nn.Module:
    return _DeepseekVL2()


class _MiniCPMV2(nn.Module):
    """The tower and the resampler of MiniCPM-V 2.0, as MiniCPMV2_0 calls them."""

    embed_dim = 128

    def __init__(self) -> None:
        from vllm.model_executor.models.minicpmv import MiniCPMV2_0

        super().__init__()
        self.config = config(drop_vision_last_layer=True, query_num=16)
        self._hidden_states = MiniCPMV2_0.get_vision_hidden_states
        with _tiny(**VIT | {"depth": 4}, img_size=112):
            self.vpm = MiniCPMV2_0.init_vision_module(self, self.config, None)
        self.resampler = MiniCPMV2_0.init_resampler(self, 128, 64)

    def forward(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        return self._hidden_states(self, {"pixel_values": pictures})


def _pictures(*sizes: tuple[int, int]) -> Inputs:
    return ([torch.randn(3, h, w) for h, w in sizes],), {}


@TOWERS.add(
    _pictures,
    Sizes(
        survey=[((168, 112), (112, 112)), ((56, 56),), ((112, 84), (70, 98))],
        further=[
            ((112, 112),),
            ((112, 112), (84, 168)),
            ((98, 126),),
            ((56, 56), (56, 56)),
            ((140, 140),),
            ((60, 75),),
            ((28, 196),),
            ((112, 70), (140, 98), (56, 84)),
        ],
    ),
    {"Block": 3},
    graphs=6,
)
def minicpmv2(vllm_config: VllmConfig) -> nn.Module:
    return _MiniCPMV2()


class _Prismatic(nn.Module):
    """Two vision models and their projector, as OpenVLA calls them."""

    def __init__(self) -> None:
        from vllm.model_executor.models import openvla

        super().__init__()
        with _tiny(**VIT):
            self.vision_backbone = openvla.PrismaticVisionBackbone(
                image_sizes=openvla._OPENVLA_IMAGE_SIZES,
                timm_model_ids=openvla._OPENVLA_TIMM_MODEL_IDS,
                timm_override_act_layers=openvla._OPENVLA_TIMM_OVERRIDE_ACT_LAYERS,
                use_fused_vision_backbone=True,
            )
        self.projector = openvla.PrismaticProjector(
            vision_dim=128, text_dim=96, use_fused_vision_backbone=True
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projector(self.vision_backbone(pixel_values))


@TOWERS.add(images(6, 224, 224), BATCHES, {"Block": 6}, graphs=6)
def openvla(vllm_config: VllmConfig) -> nn.Module:
    return _Prismatic()


class _Kanana(nn.Module):
    """A vision model and its abstractor, as KananaVForConditionalGeneration does."""

    def __init__(self) -> None:
        from vllm.model_executor.models import kanana_v

        super().__init__()
        sizes = {"depth": 3, "embed_dim": 64, "hidden_size": 96, "num_heads": 4}
        self.vision_model = kanana_v.CustomQwen2VLVE._from_config(
            Qwen2VLVisionConfig(**sizes, mlp_ratio=2)
        )
        self.abstractor = kanana_v.DynamicCAbstractor(
            config(
                merge_size=2,
                pos_emb=True,
                pos_emb_size=64,
                encoder_hidden_size=64,
                hidden_size=96,
                output_hidden_size=96,
                depth=3,
                mlp_depth=2,
            ),
            num_input_tokens=self.vision_model.get_num_tokens(),
        )
        model = kanana_v.KananaVForConditionalGeneration
        self.config = config(projector_config=config(feature_layer_index=-1))
        self._process = model._process_image_input
        for name in (
            "forward_and_project_vision",
            "forward_vision",
            "forward_projector",
            "_get_visual_feature_at",
        ):
            setattr(self, name, getattr(model, name).__get__(self))

    def forward(self, pixel_values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        data = {"pixel_values": pixel_values, "vision_grid_thw": grid}
        return self._process(self, data)


@TOWERS.add(
    patches(3 * 2 * 14 * 14, grids=torch.tensor),
    IMAGE_GRIDS,
    {"Qwen2VisionBlock": 3, "LayerNormAct2d": 4},
    graphs=30,
)
def kanana_v(vllm_config: VllmConfig) -> nn.Module:
    return _Kanana()


def _images(batch: int) -> Inputs:
    pixels = torch.randn(batch, 3, 256, 256)
    return (), {"pixel_values": pixels, "do_pooling": False, "return_dict": True}


@TOWERS.add(
    _images,
    BATCHES,
    {
        "RmsNormAct2d": 12,
    },
    graphs=30,
)
def gemma3n_vision(vllm_config: VllmConfig) -> nn.Module:
    """A MobileNetV5 with all its kinds of blocks, and a tenth as wide."""
    return AutoModel.from_config(Gemma3nVisionConfig(model_args=mobilenet_args()))
