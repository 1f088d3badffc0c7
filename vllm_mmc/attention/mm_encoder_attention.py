# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's `MMEncoderAttention` on our ops: the same constructor, forward and host side.

The backend is the one that vLLM chooses (`--mm-encoder-attn-backend` included). On CPU
`cpu_choice` decides, unless the user has chosen a backend by name.
"""

import torch
import torch.nn as nn
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import mm_encoder_attention as stock
from vllm.model_executor.models.vision import get_multimodal_config
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_mmc.attention import cpu_choice, cpu_kernel
from vllm_mmc.attention.vit_attn_wrappers import max_seqlen_tensor
from vllm_mmc.compat import symbols
from vllm_mmc.settings import Settings

logger = init_logger(__name__)


class MMEncoderAttention(stock.MMEncoderAttention):
    """Attention of an encoder, without cache and mask; items are end to end.

    Attributes:
        cpu_op: The name in `torch.ops.vllm_mmc` of the op that runs on CPU.
        cpu_provider: "auto", or the provider that the setting `cpu_attention` names.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float | None = None,
        num_kv_heads: int | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(num_heads, head_size, scale, num_kv_heads, prefix)
        self.choose_backend()

    def choose_backend(self) -> None:
        """Take the backend of this platform and of vLLM's current configuration.

        Raises:
            ValueError: The setting `cpu_attention` names what cannot run here.
        """
        if symbols.usable(symbols.FORWARD_METHOD, symbols.DISPATCH_FORWARD):
            # vLLM's constructor bound the method of the class that it was called for.
            dispatch_forward = symbols.DISPATCH_FORWARD.of(self)
            symbols.FORWARD_METHOD.set(self, dispatch_forward(compile_native=False))
        self.cpu_op, self.cpu_provider = "batched_sdpa", cpu_choice.AUTO
        if not current_platform.is_cpu():
            return
        config = get_multimodal_config()
        if config is not None and config.mm_encoder_attn_backend is not None:
            return
        asked = Settings.of(get_current_vllm_config()).cpu_attention
        if (why := cpu_choice.why_not(asked)) is not None:
            raise ValueError(f"cpu_attention is {asked}, which cannot run: {why}")
        if asked == cpu_choice.SDPA:
            return
        if cpu_kernel.levels():
            self.cpu_op, self.cpu_provider = "varlen_attention", asked
            logger.info_once("MMEncoderAttention: %s.", cpu_choice.describe(asked))
        else:
            logger.warning_once(
                "MMEncoderAttention: vllm_mmc was installed without its CPU kernel; "
                "PyTorch's attention runs instead. Install a C++ compiler (g++), then "
                "vllm_mmc again."
            )

    def cpu_choice(self) -> str | None:
        """Who computes on CPU, for the user; None on other devices."""
        if not current_platform.is_cpu():
            return None
        if self.cpu_op == "batched_sdpa":
            return "PyTorch's"
        return cpu_choice.describe(self.cpu_provider)

    def forward_cpu(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | torch.Tensor | None = None,
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention on CPU, with the arguments of vLLM's `forward_cpu`.

        Args:
            query: [batch, seq, heads * head_size] or [batch, seq, heads, head_size];
                any strides of which the last is 1.
            key: the same with kv_heads.
            value: as key.
            cu_seqlens: [items + 1] int32, or None: each row of the batch is an item.
            max_seqlen: the longest item; an int or a tensor on the host. Not used here.
            sequence_lengths: not used here.

        Returns:
            query's shape, contiguous.
        """
        q, k, v = self._in_4d(query, key, value)
        ops = torch.ops.vllm_mmc
        if self.cpu_op == "varlen_attention":
            out = ops.varlen_attention(
                q, k, v, self.scale, cu_seqlens, None, self.cpu_provider
            )
        else:
            out = ops.batched_sdpa(q, k, v, self.scale, cu_seqlens)
        return out.view(query.shape)

    def _forward_fa(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        q, k, v = self._in_4d(query, key, value)
        return torch.ops.vllm_mmc.flash_attn_maxseqlen_wrapper(
            q,
            k,
            v,
            query.shape[0],
            self.attn_backend == AttentionBackendEnum.ROCM_AITER_FA,
            self._fa_version,
            self.scale,
            cu_seqlens,
            max_seqlen_tensor(max_seqlen),
        ).view(query.shape)

    def _forward_triton(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        q, k, v = self._in_4d(query, key, value)
        return torch.ops.vllm_mmc.triton_attn_wrapper(
            q,
            k,
            v,
            query.shape[0],
            self.scale,
            cu_seqlens,
            max_seqlen_tensor(max_seqlen),
        ).view(query.shape)

    def _in_4d(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, seq = query.shape[:2]
        return self.view_qkv_to_4d(query, key, value, batch, seq, key.shape[1])


class PrefixAttention(MMEncoderAttention):
    """Attention to the first tokens of an item; a number of them for each query."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | torch.Tensor | None = None,
        sequence_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of packed items, on any device.

        Args:
            query: [tokens, heads * head_size].
            key: as query.
            value: as query.
            cu_seqlens: [items + 1] int32: where items start and end.
            max_seqlen: the longest item; an int or a tensor on the host.
            sequence_lengths: [tokens] int64: how many leading tokens of its own item
                each token may attend to.

        Returns:
            query's shape, contiguous.
        """
        q, k, v = self._in_4d(query[None], key[None], value[None])
        ops = torch.ops.vllm_mmc
        if self.cpu_op == "varlen_attention":
            out = ops.varlen_attention(
                q, k, v, self.scale, cu_seqlens, sequence_lengths, self.cpu_provider
            )
        else:
            longest = max_seqlen_tensor(max_seqlen)
            out = ops.prefix_sdpa(
                q, k, v, self.scale, cu_seqlens, longest, sequence_lengths
            )
        return out.view(query.shape)


def attention_for(module: nn.Module) -> type[MMEncoderAttention] | None:
    """The class for one of vLLM's attention layers; None for any other module.

    Subclasses of vLLM's layer do not change.
    """
    if not symbols.usable(symbols.FORWARD_METHOD, symbols.DISPATCH_FORWARD):
        return None
    return MMEncoderAttention if type(module) is stock.MMEncoderAttention else None
