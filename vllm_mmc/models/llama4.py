# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Llama4 with a compiled vision encoder: four graphs for any number of layers.

Tiles are packed, [tiles * (patches + 1), hidden], with the class token last in each
tile, so one tile is no special size. Their metadata is computed once per forward,
before the first graph, on the device; the host does not wait for it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from vllm.compilation.decorators import ignore_torch_compile
from vllm.model_executor.models.mllama4 import (
    Llama4ForConditionalGeneration,
    Llama4MultiModalProjector,
    Llama4UnfoldConvolution,
    Llama4VisionAttention,
    Llama4VisionEncoderLayer,
    Llama4VisionMLP,
    Llama4VisionModel,
    Llama4VisionPixelShuffleMLP,
    pixel_shuffle,
)
from vllm.model_executor.models.utils import AutoWeightsLoader

from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor
from vllm_mmc.compat import symbols
from vllm_mmc.compilation.decorators import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm_mmc.encoder.interfaces import (
    CompiledEncoder,
    EncoderPlan,
    SupportsCompiledEncoder,
)
from vllm_mmc.layers.activation import gelu_
from vllm_mmc.layers.rotary_embedding import apply_rotary_emb, cos_sin
from vllm_mmc.layers.upcast import upcast_for
from vllm_mmc.sizes.buckets import encoder_forward

# === Vision Encoder === #


class Llama4VisionMetadata(NamedTuple):
    """Tensors that depend on the number of tiles only.

    Attributes:
        position: [tokens] int64: the offset of each token in its tile.
        cu_seqlens: [tiles + 1] int32: where tiles start and end.
        max_seqlen: the number of tokens of a tile, int32, on the host.
        cos: [tokens, head_size / 2] fp32.
        sin: as cos.
        shuffled: [tiles * patches * ratio**2, 1 / ratio**2] int64: the tokens that
            pixel shuffle puts side by side.
    """

    position: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    shuffled: torch.Tensor


@support_torch_compile(
    dynamic_arg_dims={"patches": 0, "position": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledLlama4UnfoldConvolution(Llama4UnfoldConvolution):
    def forward(
        self,
        patches: torch.Tensor,
        position: torch.Tensor,
        class_embedding: torch.Tensor,
        positional_embedding: torch.Tensor,
    ) -> torch.Tensor:
        # [tokens, channels * patch**2] -> [tokens, hidden]
        x, _ = self.linear(patches)
        is_class = position == positional_embedding.shape[0] - 1
        x = torch.where(is_class.unsqueeze(-1), class_embedding, x)
        return x + positional_embedding[position]


class CompiledLlama4VisionAttention(Llama4VisionAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = (
            # [tokens, heads * head_size] -> [1, tokens, heads, head_size]
            x.unflatten(-1, (self.num_local_heads, self.head_dim)).unsqueeze(0)
            for x in qkv.chunk(3, dim=-1)
        )
        q, k = (
            apply_rotary_emb(x, cos, sin, is_neox_style=False, enable_fp32_compute=True)
            for x in (q, k)
        )
        output = self.attn(q, k, v, cu_seqlens, max_seqlen)
        output, _ = self.o_proj(output.flatten(2).squeeze(0))
        return output


class CompiledLlama4VisionMLP(Llama4VisionMLP):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states, _ = self.fc1(hidden_states)
        hidden_states, _ = self.fc2(gelu_(upcast_for(self.fc2, hidden_states)))
        return gelu_(hidden_states) if self.output_activation else hidden_states


@support_torch_compile(
    dynamic_arg_dims={"hidden_state": 0, "cu_seqlens": 0, "cos": 0, "sin": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledLlama4VisionEncoderLayer(Llama4VisionEncoderLayer):
    def forward(
        self,
        hidden_state: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        # [tokens, hidden]
        x = hidden_state + self.self_attn(
            self.input_layernorm(hidden_state), cu_seqlens, max_seqlen, cos, sin
        )
        return x + self.mlp(self.post_attention_layernorm(x))


@support_torch_compile(
    dynamic_arg_dims={"encoded_patches": 0, "shuffled": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledLlama4VisionPixelShuffleMLP(Llama4VisionPixelShuffleMLP):
    def forward(
        self, encoded_patches: torch.Tensor, shuffled: torch.Tensor
    ) -> torch.Tensor:
        # [tokens, hidden] -> [tiles * patches * ratio**2, projector_output]
        return self.mlp(encoded_patches[shuffled].flatten(1))


@support_torch_compile(
    dynamic_arg_dims={"image_features": 0},
    mark_unbacked_dims={"image_features": 0},  # one tile
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledLlama4MultiModalProjector(Llama4MultiModalProjector):
    """[..., vision_output] -> [..., text hidden]."""


BLOCKS = {
    Llama4UnfoldConvolution: CompiledLlama4UnfoldConvolution,
    Llama4VisionEncoderLayer: CompiledLlama4VisionEncoderLayer,
    Llama4VisionAttention: CompiledLlama4VisionAttention,
    Llama4VisionMLP: CompiledLlama4VisionMLP,
    Llama4VisionPixelShuffleMLP: CompiledLlama4VisionPixelShuffleMLP,
}


@ignore_torch_compile  # not as a whole: its regions are compiled
class CompiledLlama4VisionModel(CompiledEncoder, Llama4VisionModel):
    """The encoder, also for serving stacks of your own.

    `forward(images)` takes normalized tiles of shape [tiles, channels, image_size,
    image_size] and returns [tiles, patches * ratio**2, projector_output_dim].
    """

    encoder_plan = EncoderPlan(classes=BLOCKS)

    def forward(self, images_flattened: torch.Tensor) -> torch.Tensor:
        tiles = images_flattened.shape[0]
        x = self.forward_packed(
            self.packed_patches(images_flattened), self.prepare_encoder_metadata(tiles)
        )
        return x.unflatten(0, (tiles, -1))

    def packed_patches(self, images: torch.Tensor) -> torch.Tensor:
        """[tiles, channels, height, width] -> [tokens, channels * patch**2].

        Class tokens have rows of zeros.
        """
        patch = self.patch_size
        # [tiles, channels, rows, patch, columns, patch]
        x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.pad(x, (0, 0, 0, 1)).flatten(0, 1)

    def prepare_encoder_metadata(self, tiles: int) -> Llama4VisionMetadata:
        """Small device kernels only: nothing is copied from the host."""
        rotary = self.model.layers[0].self_attn.rotary_emb
        device, tokens = rotary.cos_sin_cache.device, self.num_patches
        # [tokens, 1, head_size / 2] complex
        cos, sin = cos_sin(rotary.cos_sin_cache.flatten(1))
        position = torch.arange(tokens, device=device)
        ratio = self.vision_adapter.pixel_shuffle_ratio
        shuffled = pixel_shuffle(position[:-1].view(1, -1, 1), ratio)
        starts = torch.arange(tiles, device=device) * tokens
        return Llama4VisionMetadata(
            position=position.repeat(tiles),
            cu_seqlens=torch.arange(tiles + 1, device=device, dtype=torch.int32)
            * tokens,
            max_seqlen=max_seqlen_tensor(tokens),
            cos=cos.repeat(tiles, 1),
            sin=sin.repeat(tiles, 1),
            shuffled=(shuffled + starts.view(-1, 1, 1)).flatten(0, 1),
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """For use without an engine. Names are the checkpoint's, without
        "vision_model."."""
        fused = symbols.LLAMA4_QKV.need()(self, weights)
        return AutoWeightsLoader(self).load_weights(fused)

    @encoder_forward
    def forward_packed(
        self, patches: torch.Tensor, metadata: Llama4VisionMetadata
    ) -> torch.Tensor:
        # [tokens, channels * patch**2] -> [tokens, hidden]
        x = self.patch_embedding(
            patches,
            metadata.position,
            # `data`: Dynamo treats a Parameter argument as another type than a Tensor.
            self.class_embedding.data,
            self.positional_embedding_vlm.data,
        )
        x = self.layernorm_pre(x)
        for layer in self.model.layers:
            x = layer(
                x,
                metadata.cu_seqlens,
                metadata.max_seqlen,
                metadata.cos,
                metadata.sin,
            )
        return self.vision_adapter(self.layernorm_post(x), metadata.shuffled)

    @property
    def token_multiple(self) -> int:
        return self.num_patches

    def max_packed_tokens(self, embeddings: int) -> int:
        ratio = self.vision_adapter.pixel_shuffle_ratio
        return embeddings // round((self.num_patches - 1) * ratio**2) * self.num_patches

    def run_dummy(self, tokens: int) -> torch.Tensor:
        tiles, size = tokens // self.num_patches, self.image_size
        shape = (tiles, self.num_channels, size, size)
        return self(self.class_embedding.new_zeros(shape))


CLASSES = BLOCKS | {
    Llama4VisionModel: CompiledLlama4VisionModel,
    Llama4MultiModalProjector: CompiledLlama4MultiModalProjector,
}


class CompiledLlama4ForConditionalGeneration(
    SupportsCompiledEncoder, Llama4ForConditionalGeneration
):
    encoder_plan = EncoderPlan(classes=CLASSES)

    def run_dummy_encoder(self, encoder: CompiledEncoder, tokens: int) -> None:
        self.multi_modal_projector(encoder.run_dummy(tokens))
