# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen2.5-VL with a compiled vision encoder: three graphs for any number of layers.

The regions compute what vLLM's compute. Only the order of windows and of what is
prepared for them is in the encoder's `forward`.

Host metadata (window index, cu_seqlens, max_seqlen, rotary tables) is vLLM's
`prepare_encoder_metadata`: computed from the grids before any graph, once per
forward, with max_seqlen as a tensor on the host.
"""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VisionBlock,
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VisionPatchMerger,
    Qwen2_5_VisionTransformer,
    Qwen2_5_VLForConditionalGeneration,
)
from vllm.model_executor.models.utils import cast_overflow_tensors

from vllm_mmc.compilation.decorators import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm_mmc.encoder.interfaces import (
    CompiledEncoder,
    EncoderPlan,
    SupportsCompiledEncoder,
)
from vllm_mmc.sizes.buckets import encoder_forward

# === Vision Encoder === #


@support_torch_compile(
    dynamic_arg_dims={"x": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledQwen2_5_VisionPatchEmbed(Qwen2_5_VisionPatchEmbed):
    """[num_patches, channels * temporal * patch * patch] -> [num_patches, hidden]."""


@support_torch_compile(
    dynamic_arg_dims={
        "x": 0,
        "cu_seqlens": 0,
        "rotary_pos_emb_cos": 0,
        "rotary_pos_emb_sin": 0,
        "sequence_lengths": 0,
    },
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledQwen2_5_VisionBlock(Qwen2_5_VisionBlock):
    """[num_patches, 1, hidden] -> the same."""


@support_torch_compile(
    dynamic_arg_dims={"x": 0},
    mark_unbacked_dims={"x": 0},  # the smallest picture is one merged patch
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledQwen2_5_VisionPatchMerger(Qwen2_5_VisionPatchMerger):
    """[num_merged, merge**2, context] -> [num_merged, d_model]."""


BLOCKS = {
    Qwen2_5_VisionPatchEmbed: CompiledQwen2_5_VisionPatchEmbed,
    Qwen2_5_VisionBlock: CompiledQwen2_5_VisionBlock,
    Qwen2_5_VisionPatchMerger: CompiledQwen2_5_VisionPatchMerger,
}


class CompiledQwen2_5_VisionTransformer(CompiledEncoder, Qwen2_5_VisionTransformer):
    """The encoder, also for serving stacks of your own.

    `forward(pixels, grid_thw)` takes pixels of shape [num_patches, channels *
    temporal_patch * patch**2] and grids of [t, h, w] in patches, one per item, and
    returns [num_patches / merge**2, out_hidden_size], item after item. With
    `encoder_metadata=prepare_encoder_metadata(grid_thw)` the metadata of equal grids
    is computed once.
    """

    encoder_plan = EncoderPlan(classes=BLOCKS)

    @encoder_forward
    def forward(
        self,
        x: torch.Tensor,
        grid_thw: list[list[int]] | None,
        *,
        encoder_metadata: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if encoder_metadata is None:
            assert grid_thw is not None
            encoder_metadata = self.prepare_encoder_metadata(grid_thw)
        metadata = encoder_metadata
        full = {
            "cu_seqlens": metadata["cu_seqlens"],
            "max_seqlen": metadata["max_seqlen_full"],
            "sequence_lengths": metadata.get("sequence_lengths_full"),
        }
        window = {
            "cu_seqlens": metadata["cu_window_seqlens"],
            "max_seqlen": metadata["max_seqlen_window"],
            "sequence_lengths": metadata.get("sequence_lengths_window"),
        }

        # [num_patches, ...] -> [num_merged, merge**2, hidden], window by window
        x = x.to(device=self.device)
        # vLLM 0.26 gets pixels that are normalised.
        norm = getattr(self, "input_norm", torch.Tensor.to)
        x = self.patch_embed(norm(x, self.dtype))
        num_patches = x.shape[0]
        x = x.view(-1, self.spatial_merge_unit, self.hidden_size)
        x = x[metadata["window_index"]].view(num_patches, 1, self.hidden_size)
        for layer_num, block in enumerate(self.blocks):
            x = block(
                x,
                rotary_pos_emb_cos=metadata["rotary_pos_emb_cos"],
                rotary_pos_emb_sin=metadata["rotary_pos_emb_sin"],
                **(full if layer_num in self.fullatt_block_indexes else window),
            )
        if x.dtype == torch.float16:  # the last block of 3B overflows on long inputs
            x = cast_overflow_tensors(x)
        x = self.merger(x.view(-1, self.spatial_merge_unit, self.hidden_size))
        return x[metadata["reverse_indices"]]

    @property
    def token_multiple(self) -> int:
        return self.spatial_merge_unit

    def max_packed_tokens(self, embeddings: int) -> int:
        return embeddings * self.token_multiple

    def run_dummy(self, tokens: int) -> torch.Tensor:
        # A strip: as high as one merged patch.
        patch = self.patch_embed.proj.weight[0].numel()
        height = self.spatial_merge_size
        return self(torch.zeros(tokens, patch), [[1, height, tokens // height]])


CLASSES = BLOCKS | {Qwen2_5_VisionTransformer: CompiledQwen2_5_VisionTransformer}


class CompiledQwen2_5_VLForConditionalGeneration(
    SupportsCompiledEncoder, Qwen2_5_VLForConditionalGeneration
):
    encoder_plan = EncoderPlan(classes=CLASSES)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.speculative_config is not None:
            # Drafters know the stock class by its name. They ask any other class for
            # `image_token_index`.
            self.config.image_token_index = self.config.image_token_id
