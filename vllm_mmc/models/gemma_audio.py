# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The audio encoders of Gemma 4 and Gemma 3n, packed; the blocks are found by survey.

A token attends to the few tokens before it, with one relative key for each distance.
Stock computes each clip at the length of the longest. Here the tokens of all clips are
side by side (`encoder/local_attention.py`).

The second convolution of Gemma 3n reaches beyond the last frame of a clip. In a stock
batch it sees there what the first convolution makes of padding. Ours sees zeros, as
stock does if the clip is alone.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers.models.gemma3n.modeling_gemma3n import (
    Gemma3nAudioAttention,
    Gemma3nAudioConformerBlock,
    Gemma3nAudioConformerLightConv1d,
    Gemma3nAudioEncoder,
    Gemma3nAudioEncoderModelOutput,
)
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4AudioAttention,
    Gemma4AudioLayer,
    Gemma4AudioLightConv1d,
    Gemma4AudioModel,
    Gemma4AudioModelOutput,
)

from vllm_mmc.encoder.local_attention import attend, convolve, pack, unpack
from vllm_mmc.encoder.packed import (
    Ints,
    host_lengths,
    item_and_offset,
    on_device,
    side_by_side,
)

# === Gemma 4 === #

STRIDE = 4
"""Frames of a token, after two convolutions."""


class CompiledGemma4AudioAttention(Gemma4AudioAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        heads = self.num_heads, self.head_dim
        query, key, value = (
            project(hidden_states).float().unflatten(-1, heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        relative_key = self.relative_k_proj(position_embeddings)
        x = attend(
            query * self.q_scale * F.softplus(self.per_dim_scale),
            key * self.k_scale,
            value,
            relative_key.view(-1, *heads).float(),
            attention_mask,
            self,
            self.config.attention_invalid_logits_value,
        )
        return self.post(x.to(hidden_states.dtype))


class CompiledGemma4AudioLightConv1d(Gemma4AudioLightConv1d):
    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        limit = min(self.gradient_clipping, torch.finfo(hidden_states.dtype).max)
        x = F.glu(self.linear_start(self.pre_layer_norm(hidden_states)), dim=-1)
        x = convolve(x, self.depthwise_conv1d.weight, mask)
        x = self.act_fn(self.conv_norm(torch.clamp(x, -limit, limit)))
        return self.linear_end(x) + hidden_states


class CompiledGemma4AudioLayer(Gemma4AudioLayer):
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        convolution_mask: torch.Tensor,
        position_embeddings: torch.Tensor,
    ) -> torch.Tensor:
        # [tokens, hidden]
        limit = min(self.gradient_clipping, torch.finfo(hidden_states.dtype).max)
        residual = self.feed_forward1(hidden_states)
        x = self.norm_pre_attn(torch.clamp(residual, -limit, limit))
        x = self.self_attn(x, position_embeddings, attention_mask)
        x = residual + self.norm_post_attn(torch.clamp(x, -limit, limit))
        x = self.feed_forward2(self.lconv1d(x, convolution_mask))
        return self.norm_out(torch.clamp(x, -limit, limit))


class CompiledGemma4AudioModel(Gemma4AudioModel):
    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Gemma4AudioModelOutput:
        """Encode clips.

        Args:
            input_features: [clips, frames, mel bins].
            attention_mask: bool [clips, frames], true for the frames of a clip, which
                are the first ones; all by default.

        Returns:
            Embeddings [clips, ceil(frames / 4), output_proj_dims], zeros after a clip,
            and which of them are of a clip.
        """
        x, lengths = self.embed(input_features, attention_mask)
        attention, conv = self.layers[0].self_attn, self.layers[0].lconv1d
        past, future = attention.max_past_horizon, attention.max_future_horizon
        window = 1, past + max(future - 1, 0)
        kernel = conv.depthwise_conv1d.kernel_size[0]
        x, attended, convolved = pack(x, lengths, attention, window, kernel)
        positions = self.rel_pos_enc(x)
        for layer in self.layers:
            x = layer(x, attended, convolved, positions)
        length = -(-input_features.shape[1] // STRIDE)
        x, mask = unpack(self.output_proj(x), lengths, length)
        return Gemma4AudioModelOutput(last_hidden_state=x, attention_mask=mask)

    def embed(
        self, features: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, Ints]:
        """[clips, frames, mel bins] -> [tokens, hidden], and the tokens of each clip.

        Clips are side by side as one. Stock's module hides between two of them one
        frame or more from each convolution.
        """
        clips, frames, _ = features.shape
        lengths = np.full(clips, frames) if mask is None else host_lengths(mask.sum(1))
        begin = np.arange(clips) * frames
        rows, begin = side_by_side(begin, lengths, stride=STRIDE, gap=2)
        x, _ = self.subsample_conv_projection(
            features.flatten(0, 1)[on_device(rows.clip(0), features.device)][None],
            on_device(rows >= 0, features.device, torch.bool)[None],
        )
        tokens = -(-lengths // STRIDE)
        clip, offset = item_and_offset(tokens)
        kept = begin[clip] // STRIDE + offset
        return x[0, on_device(kept, x.device)], tokens


# === Gemma 3n === #


class CompiledGemma3nAudioAttention(Gemma3nAudioAttention):
    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor,
        position_embeddings: torch.Tensor,
    ) -> torch.Tensor:
        heads = self.num_heads, self.head_dim
        query, key, value = (
            project(hidden_states).unflatten(-1, heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        relative_key = self.relative_position_embedding.pos_proj(position_embeddings)
        return attend(
            query * self.q_scale * F.softplus(self.per_dim_scale),
            key,
            value,
            relative_key.view(-1, *heads),
            mask,
            self,
            torch.finfo(query.dtype).min,
        )


class CompiledGemma3nAudioConformerLightConv1d(Gemma3nAudioConformerLightConv1d):
    def forward(
        self, audio_encodings: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        limit = self.gradient_clipping
        x = F.glu(self.linear_start(self.pre_layer_norm(audio_encodings)), dim=-1)
        x = convolve(x, self.depthwise_conv1d.weight, mask)
        x = F.silu(self.conv_norm(torch.clamp(x, -limit, limit)))
        return self.linear_end(x) + audio_encodings


class CompiledGemma3nAudioConformerBlock(Gemma3nAudioConformerBlock):
    def forward(
        self,
        audio_encodings: torch.Tensor,
        attention_mask: torch.Tensor,
        convolution_mask: torch.Tensor,
        position_embeddings: torch.Tensor,
    ) -> torch.Tensor:
        # [tokens, hidden]
        limit, attention = self.gradient_clipping, self.attention
        residual = self.ffw_layer_start(audio_encodings)
        x = attention.pre_attn_norm(torch.clamp(residual, -limit, limit))
        x = attention.post(attention.attn(x, attention_mask, position_embeddings))
        x = residual + attention.post_norm(torch.clamp(x, -limit, limit))
        x = self.ffw_layer_end(self.lconv1d(x, convolution_mask))
        return self.norm(torch.clamp(x, -limit, limit))


class CompiledGemma3nAudioEncoder(Gemma3nAudioEncoder):
    def forward(
        self, audio_mel: torch.Tensor, audio_mel_mask: torch.Tensor
    ) -> Gemma3nAudioEncoderModelOutput:
        """Encode clips.

        Args:
            audio_mel: [clips, frames, mel bins].
            audio_mel_mask: bool [clips, frames], false for the frames of a clip, which
                are the first ones.

        Returns:
            Embeddings [clips, ceil(frames / 16), hidden], zeros after a clip, and a
            mask that is false for those of a clip.
        """
        frames = host_lengths((~audio_mel_mask).sum(1))
        # One by one: the norm of the convolutions adds up over the frames of a clip.
        clips = [
            self.subsample_conv_projection(mel[None, :length])[0]
            for mel, length in zip(audio_mel, frames.tolist(), strict=True)
            if length
        ]
        stride = math.prod(time for time, _ in self.config.sscp_conv_stride_size)
        lengths = -(-frames // stride)
        block = self.conformer[0]
        attention = block.attention.attn
        past, future = attention.max_past_horizon, attention.max_future_horizon
        kernel = block.lconv1d.causal_padding + 1
        window = 0, past + future
        x = torch.cat(clips)
        x, attended, convolved = pack(x, lengths, attention, window, kernel)
        distances = torch.arange(
            past, -future - 1, -1, device=x.device, dtype=torch.float32
        )
        frequency = attention.relative_position_embedding.inv_timescales.float()
        angle = distances[None, :, None] * frequency
        positions = torch.cat([angle.sin(), angle.cos()], dim=-1).to(x.dtype)
        for block in self.conformer:
            x = block(x, attended, convolved, positions)
        step = self.config.conf_reduction_factor
        kept = np.flatnonzero(item_and_offset(lengths)[1] % step == 0)
        x = x[on_device(kept, x.device)]
        length = -(-audio_mel.shape[1] // (stride * step))
        x, mask = unpack(x, -(-lengths // step), length)
        return Gemma3nAudioEncoderModelOutput(last_hidden_state=x, audio_mel_mask=~mask)


ENCODER_REWRITES = {
    Gemma4AudioModel: CompiledGemma4AudioModel,
    Gemma4AudioLayer: CompiledGemma4AudioLayer,
    Gemma4AudioAttention: CompiledGemma4AudioAttention,
    Gemma4AudioLightConv1d: CompiledGemma4AudioLightConv1d,
    Gemma3nAudioEncoder: CompiledGemma3nAudioEncoder,
    Gemma3nAudioConformerBlock: CompiledGemma3nAudioConformerBlock,
    Gemma3nAudioAttention: CompiledGemma3nAudioAttention,
    Gemma3nAudioConformerLightConv1d: CompiledGemma3nAudioConformerLightConv1d,
}
