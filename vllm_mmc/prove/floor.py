# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The least that one call of an encoder can take."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass
class Floor:
    """The matrix products of one call, and the attention's operations.

    Attributes:
        products: (rows, in, out, bias?) -> a function per occurrence: each has the
            weights of its own layer, so that none is found in a CPU cache where the
            encoder would have to fetch it.
        product_flops: of all of them.
        attention_flops: of Q K^T and P V, 4 S^2 H D per sequence.
        bytes: that the products read and write, each input, weight and output once.
    """

    products: dict[tuple[Any, ...], list[Callable[[], Any]]]
    product_flops: int
    attention_flops: int
    bytes: int

    def seconds(self, medians: Mapping[Any, float]) -> float:
        """Returns the floor, from the median seconds of each shape's occurrences."""
        products = sum(medians[shape] for shape in self.products)
        return products * (1 + self.attention_flops / self.product_flops)


def floor_of(tower: Any, run: Callable[[], Any]) -> Floor:
    """Watches one eager call.

    Args:
        tower: an eager encoder.
        run: calls it.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F
    from vllm.model_executor.layers.attention import MMEncoderAttention
    from vllm.model_executor.layers.conv import ConvLayerBase
    from vllm.model_executor.layers.linear import LinearBase

    products: dict[tuple[Any, ...], list[Callable[[], Any]]] = defaultdict(list)
    attention_flops = moved = 0
    device = next(tower.parameters()).device
    vectors: dict[tuple[int, int], Any] = {}

    def product(module: Any, rows: int, inner: int, outer: int) -> None:
        nonlocal moved
        weight_dtype = next(module.parameters()).dtype
        x = vectors.setdefault(
            (rows, inner),
            torch.randn(rows, inner, dtype=weight_dtype, device=device),
        )
        bias = getattr(module, "bias", None)
        if isinstance(module, LinearBase):
            apply = partial(module.quant_method.apply, module, x, bias)
        else:
            apply = partial(F.linear, x, module.weight.reshape(outer, inner), bias)
        products[rows, inner, outer, bias is not None].append(apply)
        moved += (rows * inner + inner * outer + rows * outer) * x.element_size()

    def linear(module: Any, args: Any) -> None:
        sizes = (
            (
                getattr(module, "input_size_per_partition", module.input_size),
                getattr(module, "output_size_per_partition", module.output_size),
            )
            if isinstance(module, LinearBase)
            else (module.in_features, module.out_features)
        )
        product(module, args[0].numel() // sizes[0], *sizes)

    def patches(module: Any, args: Any) -> None:
        if not module.enable_linear:
            raise NotImplementedError("the floor does not know overlapping patches")
        rows = args[0].numel() // module.input_size
        product(module, rows, module.input_size, module.out_channels)

    def convolution(module: Any, args: Any, output: Any) -> None:
        # As one product of all windows, laid out in rows.
        rows = output.numel() // module.out_channels
        product(module, rows, module.weight[0].numel(), module.out_channels)

    def attention(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal attention_flops
        names = ("query", "key", "value", "cu_seqlens")
        given = dict(zip(names, args, strict=False)) | kwargs
        query = given["query"]
        batch, length = query.shape[:2] if query.dim() > 2 else (1, len(query))
        lengths = torch.full((batch,), length)
        if (cu_seqlens := given.get("cu_seqlens")) is not None:
            lengths = cu_seqlens.diff().repeat(batch)
        pairs = int(lengths.long().square().sum())
        attention_flops += 4 * pairs * module.num_heads * module.head_size

    with contextlib.ExitStack() as hooks:
        for name, module in tower.named_modules():
            watch: Callable[..., None] | None = None
            with_kwargs = False
            if isinstance(module, (LinearBase, nn.Linear)):
                watch = linear
            elif isinstance(module, ConvLayerBase):
                watch = patches
            elif isinstance(module, MMEncoderAttention):
                watch, with_kwargs = attention, True
            elif isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1:
                hooks.callback(module.register_forward_hook(convolution).remove)
            elif isinstance(module, (nn.modules.conv._ConvNd, nn.MultiheadAttention)):
                raise NotImplementedError(f"the floor does not know {name}: {module}")
            if watch is not None:
                handle = module.register_forward_pre_hook(
                    watch, with_kwargs=with_kwargs
                )
                hooks.callback(handle.remove)
        run()
    flops = sum(
        2 * rows * inner * outer * len(calls)
        for (rows, inner, outer, _), calls in products.items()
    )
    return Floor(dict(products), flops, attention_flops, moved)
