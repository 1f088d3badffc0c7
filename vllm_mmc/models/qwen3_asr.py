# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The audio encoder of Qwen3-ASR and Qwen3-Omni: one graph for any number of layers.

Clips are cut into chunks of one second. One call of the convolutions takes all chunks.
Their tokens are then packed, [tokens, hidden], and attend within windows. Host metadata
is computed before the first graph, from lengths that vLLM keeps on the host.

One thing differs from stock on purpose. Stock pads the last chunk of a clip to the
longest chunk of its batch, which changes the clip's last tokens. This encoder pads it
to a whole chunk, as Hugging Face's does, so a clip does not depend on its batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeAudioEncoder,
    Qwen3OmniMoeAudioEncoderLayer,
)

from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor
from vllm_mmc.compilation.decorators import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm_mmc.encoder.audio_layouts import ChunkLayout
from vllm_mmc.encoder.interfaces import EncoderPlan
from vllm_mmc.encoder.packed import (
    Lengths,
    cu_seqlens,
    host_lengths,
    item_and_offset,
    on_device,
    one_item,
    starts,
)
from vllm_mmc.layers.activation import activate_, gelu_
from vllm_mmc.layers.upcast import upcast_for
from vllm_mmc.models.qwen2_5_omni import SupportsQwenOmniAudio
from vllm_mmc.sizes.buckets import encoder_forward

# === Audio Encoder === #


@support_torch_compile(
    dynamic_arg_dims={"hidden_states": 0, "cu_seqlens": 0},
    enable_if=should_torch_compile_mm_encoder,
    is_encoder=True,
)
class CompiledQwen3OmniMoeAudioEncoderLayer(Qwen3OmniMoeAudioEncoderLayer):
    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: torch.Tensor,
    ) -> torch.Tensor:
        # [tokens, hidden]
        x = hidden_states + self.self_attn(
            self.self_attn_layer_norm(hidden_states), cu_seqlens, max_seqlen
        )
        y, _ = self.fc1(self.final_layer_norm(x))
        y, _ = self.fc2(activate_(self.activation_fn, upcast_for(self.fc2, y)))
        x = x + y
        if x.dtype == torch.float16:
            limit = torch.finfo(x.dtype).max - 1000
            x = torch.clamp(x, min=-limit, max=limit)
        return x


class CompiledQwen3OmniMoeAudioEncoder(ChunkLayout, Qwen3OmniMoeAudioEncoder):
    """The encoder, also for serving stacks of your own.

    `forward(input_features, feature_lens)` takes log-mel features [num_mel_bins,
    frames], clip after clip, and the number of frames of each clip, best on the host.
    It returns [tokens, output_dim], clip after clip.
    """

    encoder_plan = EncoderPlan(
        classes={Qwen3OmniMoeAudioEncoderLayer: CompiledQwen3OmniMoeAudioEncoderLayer}
    )

    def forward(
        self,
        input_features: torch.Tensor,
        feature_lens: Lengths,
        aftercnn_lens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        values = self.graph_buffers(input_features, feature_lens)
        x = self.forward_graph(values)
        return x[: sum(self.embeddings(feature_lens))]

    def graph_buffers(
        self, input_features: torch.Tensor, feature_lens: Lengths
    ) -> dict[str, torch.Tensor]:
        """The inputs of `forward_graph`."""
        metadata = self.prepare_encoder_metadata(feature_lens)
        # [num_mel_bins, chunks, frames of a chunk] -> [chunks, num_mel_bins, frames]
        padded = F.pad(input_features.to(self.dtype), (0, 1))
        chunks = padded[:, metadata.pop("frames")].transpose(0, 1)
        return {"chunks": chunks, **metadata}

    def forward_graph(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[tokens, output_dim]; a single token comes twice."""
        x = self.embed(values["chunks"], values["tokens"])
        return self.forward_packed(x, values["cu_seqlens"], values["max_seqlen"])

    @property
    def least_share(self) -> int:
        return _after_cnn(self.n_window * 2)

    def prepare_encoder_metadata(
        self, feature_lens: Lengths
    ) -> dict[str, torch.Tensor]:
        """Computed on the host; each tensor is one copy to the device.

        Returns:
            frames: [chunks, frames of a chunk] int64: the input column of each frame;
                -1 means padding.
            tokens: [tokens] int64: the convolved columns that are not padding.
            cu_seqlens: [windows + 1] int32: where windows start and end.
            max_seqlen: the longest window, int32, on the host.
        """
        frames = host_lengths(feature_lens)
        chunk = self.n_window * 2
        clip, index = item_and_offset(-(-frames // chunk))  # of each chunk
        offset = np.arange(chunk) + (index * chunk)[:, None]
        start = starts(frames)[clip, None]
        column = np.where(offset < frames[clip, None], start + offset, -1)

        positions = _after_cnn(chunk)
        kept = _after_cnn(np.minimum(frames[clip] - index * chunk, chunk))
        token = np.flatnonzero((np.arange(positions) < kept[:, None]).ravel())

        lengths = np.bincount(clip, kept, len(frames)).astype(np.int64)
        window = positions * (self.n_window_infer // chunk)
        clip, index = item_and_offset(-(-lengths // window))  # of each window
        sizes = np.minimum(lengths[clip] - index * window, window)
        if len(token) == 1:  # graphs are made for two tokens or more
            token, sizes = token.repeat(2), np.append(sizes, 1)
        return {
            "frames": on_device(column, self.device),
            "tokens": on_device(token, self.device),
            "cu_seqlens": on_device(cu_seqlens(sizes), self.device, torch.int32),
            "max_seqlen": max_seqlen_tensor(int(sizes.max(initial=0))),
        }

    def embed(self, chunks: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[chunks, num_mel_bins, frames of a chunk] -> [tokens, d_model]."""
        parts = []
        for part in chunks.split(self.conv_chunksize):  # minutes of speech
            x = gelu_(self._first(upcast_for(self.conv2d1, part)))
            for convolution in (self.conv2d2, self.conv2d3):
                x = gelu_(convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
            parts.append(x)
        x = torch.cat(parts) if len(parts) > 1 else parts[0]
        # [chunks, bins, positions, channels] -> [chunks, positions, channels * bins]
        x = self.conv_out(x.permute(0, 2, 3, 1).contiguous().flatten(2))
        table = self.positional_embedding.positional_embedding
        x = x + table[: x.shape[1]].to(x.dtype)
        return x.flatten(0, 1)[tokens]

    def _first(self, chunks: torch.Tensor) -> torch.Tensor:
        """`conv2d1` of [chunks, bins, frames]: [chunks, bins, positions, channels].

        A convolution of one channel is a matrix product. Its output has channels
        innermost, which makes the next convolutions a third faster.
        """
        conv = self.conv2d1
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        x = F.pad(chunks, (conv.padding[0],) * 4)
        x = x.unfold(1, kernel, stride).unfold(2, kernel, stride).flatten(3)
        weight, bias = conv.weight.flatten(1).to(x.dtype), conv.bias.to(x.dtype)
        return F.linear(x, weight, bias)

    @encoder_forward
    def forward_packed(
        self, x: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: torch.Tensor
    ) -> torch.Tensor:
        # [tokens, d_model] -> [tokens, output_dim]
        for layer in self.layers:
            x = layer(x, cu_seqlens, max_seqlen)
        return self.proj2(self.act(self.proj1(self.ln_post(x))))

    def embeddings(self, feature_lens: Lengths) -> list[int]:
        """The number of embeddings of each clip, from its number of frames."""
        frames, chunk = host_lengths(feature_lens), self.n_window * 2
        whole = frames // chunk * _after_cnn(chunk)
        return (whole + _after_cnn(frames % chunk)).tolist()

    def run_dummy(self, tokens: int) -> torch.Tensor:
        width = self.ln_post.weight.shape[0]
        return self.forward_packed(*one_item(tokens, width, self.conv_out.weight))


def _after_cnn(frames: Any) -> Any:
    """Tokens after three convolutions of stride 2."""
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


CLASSES = {
    Qwen3OmniMoeAudioEncoder: CompiledQwen3OmniMoeAudioEncoder,
    Qwen3OmniMoeAudioEncoderLayer: CompiledQwen3OmniMoeAudioEncoderLayer,
}


class SupportsCompiledQwen3Audio(SupportsQwenOmniAudio):
    """For every model with this audio tower. It goes before the stock class."""

    encoder_plan = EncoderPlan(classes=CLASSES, surveyed=("visual",))
