// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
//
// Attention over items that lie end to end, for CPUs: each to itself, or to other tokens.
//
// Nothing here knows of torch or Python: the library is loaded with ctypes
// (vllm_mmc/attention/cpu_kernel.py, which mirrors the structs) and is handed torch's own
// parallel_for, so it needs no torch to be built and shares torch's threads.

#pragma once

#include <cstdint>

#define INLINE inline __attribute__((always_inline))

// What the compiler knows; clang and icx count differently.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 10
#define HAS_AVX512_BF16
#endif
#if __GNUC__ >= 11 && defined(__linux__)
#define HAS_AMX
#endif
#endif

namespace vllm_mmc {

enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A [tokens, heads, head_size] tensor whose last dimension is dense; strides in elements.
struct Rows {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

struct Attention {
  Rows q, k, v, out;
  const int32_t* cu_seqlens;  // [items + 1], ascending; or null: items of equal length
  const int32_t* keys;        // [items, 2]: where their keys begin and end; or null: at
                              // the item's own bounds
  int64_t items;
  int64_t tokens;  // in all; those of no item get zeros
  int64_t heads;
  int64_t kv_heads;  // divides heads
  int64_t head_size;
  int64_t shortest, longest;  // items of other lengths are left to others
  float scale;
  Dtype dtype;
};

// The share of one of `threads` workers.
using Worker = void (*)(const Attention&, int64_t thread, int64_t threads);

// Of varlen_attention.inc, compiled once for each instruction set.
namespace portable {
void work(const Attention&, int64_t thread, int64_t threads);
}
namespace avx2 {
void work(const Attention&, int64_t thread, int64_t threads);
}
namespace avx512 {
void work(const Attention&, int64_t thread, int64_t threads);
}

// Of tiles.inc, for bf16 alone.
namespace avx512_bf16 {
void work(const Attention&, int64_t thread, int64_t threads);
}
namespace amx {
void work(const Attention&, int64_t thread, int64_t threads);
}
namespace plain_avx512_bf16 {
void work(const Attention&, int64_t thread, int64_t threads);
}
namespace plain_amx {
void work(const Attention&, int64_t thread, int64_t threads);
}

}  // namespace vllm_mmc
