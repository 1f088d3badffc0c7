# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stand-ins for modules that some towers import and a CPU environment lacks."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F


@contextlib.contextmanager
def torchaudio() -> Iterator[None]:
    """Lets vLLM's modules import torchaudio where it is missing.

    They use it in front ends, before the tower. Nothing here computes anything.
    """
    modules = {
        name: ModuleType(name)
        for name in (
            "torchaudio",
            "torchaudio.compliance",
            "torchaudio.compliance.kaldi",
            "torchaudio.functional",
        )
    }
    vars(modules["torchaudio.functional"])["melscale_fbanks"] = (
        lambda n_freqs, n_mels, **_: torch.zeros(n_freqs, n_mels)
    )
    with _importable(modules):
        yield


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """Lets a tower import the varlen attention of vLLM's CUDA extension.

    It stays one opaque operation, as the real one is.
    """
    module = ModuleType("vllm.vllm_flash_attn")
    vars(module)["flash_attn_varlen_func"] = _flash_attn_varlen_func
    with _importable({module.__name__: module}):
        yield


@contextlib.contextmanager
def _importable(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Makes modules importable, unless the first of them is; undone on leaving."""
    try:
        importlib.import_module(next(iter(modules)))
    except ImportError:
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None)
            module.__path__ = []
            parent, _, child = name.rpartition(".")
            if parent in modules:
                setattr(modules[parent], child, module)
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)
    else:
        yield


def _flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_q: int,
    causal: bool,
    window_size: list[int],
    **_: Any,
) -> torch.Tensor:
    return torch.ops.vllm_mmc_tests.varlen_attention(
        q, k, v, cu_seqlens_q, max_seqlen_q, causal, window_size
    )


@torch.library.custom_op("vllm_mmc_tests::varlen_attention", mutates_args=())
def _varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    causal: bool,
    window_size: list[int],
) -> torch.Tensor:
    output = torch.empty_like(q)
    bounds = cu_seqlens.tolist()
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        at = torch.arange(end - start)
        ahead = at - at[:, None]  # of key to query
        left, right = window_size[0], 0 if causal else window_size[1]
        mask = torch.ones_like(ahead, dtype=torch.bool)
        if left >= 0:
            mask &= ahead >= -left
        if right >= 0:
            mask &= ahead <= right
        query, key, value = (x[start:end].transpose(0, 1) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output[start:end] = attended.transpose(0, 1)
    return output


@_varlen_attention.register_fake
def _(q: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(q)
