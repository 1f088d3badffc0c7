# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Is a compiled region what it was compiled from? (setting `parity_check`)

The tolerance is derived, not chosen: how far eager itself moves when each input value
is moved by one unit of its dtype's precision. A compiled graph only adds and rounds in
another order, which is of that kind; a wrong graph is orders of magnitude away.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn

from vllm_mmc.compilation.arguments import leaves, map_leaves

# Rounding moves every intermediate result, the probe below the inputs only.
MARGIN = 16.0


def compare(
    compiled: Callable[..., Any],
    forward: Callable[..., Any],
    module: nn.Module,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> tuple[Any, Any, str | None]:
    """Run one call compiled and eager.

    Args:
        compiled: Takes `module`, then the arguments.
        forward: The same, eager; takes the arguments.

    Returns:
        The compiled output, the eager one, and how they differ; None if they do not.
    """
    args, kwargs = arguments
    with torch.no_grad():
        eager = forward(*args, **kwargs)
        nudged = forward(
            *map_leaves(_nudge, args, ""), **map_leaves(_nudge, kwargs, "")
        )
        output = compiled(module, *args, **kwargs)
    return output, eager, next(_differences(output, eager, nudged), None)


def _nudge(_: str, value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    # One way for even, the other for odd places, so that sums do not just scale.
    signs = torch.ones(value.numel(), dtype=value.dtype, device=value.device)
    signs[1::2] = -1
    eps = torch.finfo(value.dtype).eps
    return value * (1 + eps * signs.view(value.shape))


def _differences(output: Any, eager: Any, nudged: Any) -> Iterator[str]:
    outputs, eagers, nudgeds = (
        [leaf for _, leaf in leaves(value, "")] for value in (output, eager, nudged)
    )
    if len(outputs) != len(eagers):
        yield f"{len(outputs)} outputs instead of {len(eagers)}"
        return
    for out, ref, near in zip(outputs, eagers, nudgeds, strict=True):
        if not isinstance(ref, torch.Tensor):
            if out != ref:
                yield f"{out!r} instead of {ref!r}"
        elif out.shape != ref.shape or out.dtype != ref.dtype:
            yield (
                f"{tuple(out.shape)} {out.dtype} instead of "
                f"{tuple(ref.shape)} {ref.dtype}"
            )
        elif not ref.is_floating_point():
            if not torch.equal(out, ref):
                yield f"{(out != ref).sum().item()} of {ref.numel()} values differ"
        elif ref.numel():
            yield from _far(out.double(), ref.double(), near.double(), ref.dtype)


def _far(
    out: torch.Tensor, ref: torch.Tensor, near: torch.Tensor, dtype: torch.dtype
) -> Iterator[str]:
    finite = ref.isfinite() & near.isfinite()
    if not torch.equal(out.isfinite() | ~finite, torch.ones_like(finite)):
        yield "values that are not finite"
        return
    if not finite.any():
        return
    out, ref, near = out[finite], ref[finite], near[finite]
    scale = ref.abs().max().item()
    natural = max((near - ref).abs().max().item(), torch.finfo(dtype).eps * scale)
    difference = (out - ref).abs().max().item()
    if difference > MARGIN * natural:
        yield (
            f"largest difference {difference:.3g}, allowed {MARGIN * natural:.3g} "
            f"(values up to {scale:.3g})"
        )
