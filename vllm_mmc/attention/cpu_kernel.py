# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The library of csrc/cpu: loads it, finds the instruction sets that run, and calls it.

The library is built with the package if there is a compiler (pyproject.toml). It does
not link to torch, and runs on torch's threads, through `torch_parallel_for`.
"""

import ctypes
import enum
import functools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Numbers of csrc/cpu/varlen_attention.h; the structs are from there too."""

ALL_LENGTHS = (0, 2**62)

NOT_BUILT = RuntimeError("vllm_mmc was installed without its CPU kernel")

SMALL = 1 << 18
"""Multiplications below which one thread is as fast as several."""


class State(enum.IntEnum):
    """Whether a path of the library runs here; numbers of csrc/cpu."""

    RUNS = 0
    NOT_OF_PROCESSOR = 1
    NOT_OF_SYSTEM = 2
    NOT_COMPILED = 3

    @property
    def reason(self) -> str:
        return (
            "it runs",
            "this processor does not have it",
            "the system refuses its registers",
            "it was not compiled: there was no g++, or an old one (g++ 11 has all)",
        )[self]


class _Attention(ctypes.Structure):
    """The C struct, with the fields of its four `Rows` inline: fewer objects."""

    _fields_ = (
        *(
            field
            for name in ("q", "k", "v", "out")
            for field in (
                (f"{name}_data", ctypes.c_void_p),
                (f"{name}_token_stride", ctypes.c_int64),
                (f"{name}_head_stride", ctypes.c_int64),
            )
        ),
        ("cu_seqlens", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("items", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("head_size", ctypes.c_int64),
        ("shortest", ctypes.c_int64),
        ("longest", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class _Library:
    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        library.vllm_mmc_attention_size.restype = ctypes.c_int64
        if library.vllm_mmc_attention_size() != ctypes.sizeof(_Attention):
            raise OSError("the library is of another version of this package")
        torch_cpu = ctypes.CDLL(
            str(Path(torch.__file__).parent / "lib/libtorch_cpu.so")
        )
        self.parallel_for = ctypes.cast(torch_cpu.torch_parallel_for, ctypes.c_void_p)
        self.run = library.vllm_mmc_varlen_attention
        self.run.argtypes = (
            ctypes.POINTER(_Attention),
            ctypes.c_int32,
            ctypes.c_int64,
            ctypes.c_void_p,
        )
        library.vllm_mmc_level.restype = ctypes.c_char_p
        state = ctypes.c_int32()
        found: list[tuple[str, State]] = []
        while name := library.vllm_mmc_level(len(found), ctypes.byref(state)):
            found.append((name.decode(), State(state.value)))
        self.states = tuple(found)
        self.indices = {name: index for index, (name, _) in enumerate(found)}
        self.levels = tuple(name for name, state in found if state == State.RUNS)


@functools.cache
def _library() -> _Library | None:
    spec = find_spec("vllm_mmc._cpu")
    try:
        return _Library(spec.origin) if spec and spec.origin else None
    # Another platform's or version's, or a torch without the symbol.
    except (OSError, AttributeError):
        return None


def states() -> tuple[tuple[str, State], ...]:
    """Each path of the library, best first, and whether it runs; or ()."""
    library = _library()
    return library.states if library else ()


def levels() -> tuple[str, ...]:
    """The paths that run, best first; or ().

    Those named plain_* do what the others do in plain C++, for tests.
    """
    library = _library()
    return library.levels if library else ()


def bounds_error(bounds: list[int], tokens: int) -> ValueError:
    return ValueError(
        f"cu_seqlens must ascend within [0, {tokens}], the number of tokens; "
        f"found {bounds}"
    )


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    cu_seqlens: torch.Tensor | None,
    kv_lens: torch.Tensor | None = None,
    level: str | None = None,
    lengths: tuple[int, int] = ALL_LENGTHS,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q @ k.T * scale) @ v for each item and head.

    On 16 tokens most of the time is spent in this function, so it makes few views.

    Args:
        q: [batch, seq, heads, head_size] of fp32, bf16 or fp16. Views of one qkv buffer
            are not copied.
        k: [batch, seq, kv_heads, head_size]; kv_heads divides heads.
        v: as k.
        scale: factor of the scores.
        cu_seqlens: [items + 1] int32, where items begin and end in the tokens of the
            batch laid end to end; those of none get 0. None: each row is an item.
        kv_lens: [tokens] int: how many keys of its item each token sees. None: all.
        level: one of `levels()`; default the first.
        lengths: the shortest and the longest item that is computed; of others, and they
            alone, the output is not written.
        out: to write to, [batch, seq, heads, head_size], contiguous.

    Returns:
        [batch, seq, heads, head_size], contiguous, of q's dtype.
    """
    library = _library()
    if library is None:
        raise NOT_BUILT
    batch, seq, heads, head_size = q.shape
    tokens, items = batch * seq, batch
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if cu_seqlens is not None:
        items = cu_seqlens.shape[0] - 1
        if cu_seqlens.dtype != torch.int32 or cu_seqlens.stride(0) != 1:
            cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
    keys = None
    if kv_lens is not None:
        bounds = cu_seqlens if cu_seqlens is not None else torch.arange(batch + 1) * seq
        cu_seqlens, keys = _pieces(bounds, kv_lens, tokens)
        items = len(keys)
    (q, *q_rows), (k, *k_rows), (v, *v_rows) = map(_rows, (q, k, v))
    call = _Attention(
        *q_rows,
        *k_rows,
        *v_rows,
        out.data_ptr(),
        heads * head_size,
        head_size,
        cu_seqlens.data_ptr() if cu_seqlens is not None else None,
        keys.data_ptr() if keys is not None else None,
        items,
        tokens,
        heads,
        k.shape[2],
        head_size,
        *lengths,
        scale,
        DTYPES[q.dtype],
    )
    work = tokens * tokens // max(items, 1) * heads * head_size
    failed = library.run(
        ctypes.byref(call),
        library.indices[level or library.levels[0]],
        torch.get_num_threads() if work > SMALL else 1,
        library.parallel_for,
    )
    if failed == 1 and cu_seqlens is not None:
        raise bounds_error(cu_seqlens.tolist(), tokens)
    if failed:
        raise MemoryError("no memory for keys and values in fp32")
    return out


def _pieces(
    cu_seqlens: torch.Tensor, kv_lens: torch.Tensor, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Items cut where the number of keys changes: their bounds, those of their keys."""
    bounds, seen = cu_seqlens.numpy(), kv_lens.numpy()
    lengths = np.diff(bounds)
    if bounds[0] != 0 or bounds[-1] != tokens or lengths.min(initial=0) < 0:
        raise ValueError(
            f"with kv_lens, cu_seqlens must ascend from 0 to {tokens}, the number of "
            f"tokens; found {bounds.tolist()}"
        )
    if seen.min() < 1:
        raise ValueError(f"kv_lens must be 1 or more; found {seen.min()}")
    begin = bounds[:-1].repeat(lengths)
    end = np.minimum(begin + seen, bounds[1:].repeat(lengths))
    cuts = np.flatnonzero((np.diff(begin) != 0) | (np.diff(end) != 0)) + 1
    cuts = np.concatenate([[0], cuts])
    keys = np.stack([begin[cuts], end[cuts]], axis=1)
    bounds = np.append(cuts, tokens)
    return (
        torch.from_numpy(bounds.astype(np.int32)),
        torch.from_numpy(keys.astype(np.int32)),
    )


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
    """`x` with a dense last dimension and a batch without gaps; pointer, strides."""
    batch, token, head, last = x.stride()
    if last != 1 or (x.shape[0] != 1 and batch != x.shape[1] * token):
        x = x.contiguous()
        _, token, head, _ = x.stride()
    return x, x.data_ptr(), token, head
