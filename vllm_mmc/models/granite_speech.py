# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Granite Speech: attention within blocks, without a branch on the number of frames."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from vllm.model_executor.models.granite_speech import GraniteSpeechConformerAttention

from vllm_mmc.layers.batch_norm import BatchNorm1d
from vllm_mmc.layers.relative_shift import relative_shift


class GraniteSpeechBlockAttention(GraniteSpeechConformerAttention):
    """The last block is always masked, also if it is full.

    Stock gathers a row of the table of positions for each pair of query and key. Here
    each query is multiplied with each row that it needs once, and the scores are
    shifted.
    """

    def forward(
        self, hidden_states: torch.Tensor, attention_dists: torch.Tensor
    ) -> torch.Tensor:
        # [batch, frames, hidden]; attention_dists is the same in every call
        batch, frames, _ = hidden_states.shape
        context = self.context_size
        blocks = (frames + context - 1) // context

        def in_blocks(x: torch.Tensor) -> torch.Tensor:
            x = F.pad(x, (0, 0, 0, blocks * context - frames))
            x = x.view(batch, blocks, context, self.num_heads, self.dim_head)
            return x.transpose(2, 3)

        hidden_states = self.pre_norm(hidden_states)
        query = in_blocks(self.to_q(hidden_states))
        key, value = map(in_blocks, self.to_kv(hidden_states).chunk(2, dim=-1))

        # The rows of the distances context - 1, ..., 1 - context.
        start = self.max_pos_emb - context + 1
        positions = self.rel_pos_emb.weight[start : start + 2 * context - 1].flip(0)
        bias = relative_shift(query @ positions.T) * self.scale
        place = torch.arange(blocks * context, device=bias.device)
        padding = place.view(blocks, 1, 1, context) >= frames
        bias = bias.masked_fill(padding, -torch.finfo(bias.dtype).max)

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, scale=self.scale
            )
        out = out.transpose(2, 3).reshape(
            batch, blocks * context, self.to_out.in_features
        )
        # A view into padded rows would be a batched product, for which Inductor makes
        # one graph for clips of one frame and one for all others.
        return self.to_out(out.narrow(1, 0, frames).contiguous())


ENCODER_REWRITES = {
    GraniteSpeechConformerAttention: GraniteSpeechBlockAttention,
    nn.BatchNorm1d: BatchNorm1d,
}
