// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project

#include "varlen_attention.h"

#ifdef HAS_AVX512_BF16
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own intrinsics
#include <immintrin.h>

#include <algorithm>
#include <memory>

#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,prefer-vector-width=512")
#define ISA avx512_bf16
constexpr int kLanes = 16;

namespace vllm_mmc {
namespace ISA {
namespace {

#include "tiles_avx512.inc"

// vdpbf16ps adds the product of the odd elements, rounds, then that of the even ones, and
// rounds. Numbers below 2^-126 are 0 to it, before and after.
struct Machine : Avx512 {
  static constexpr int kFewRows = 8, kMostRows = 8, kWide = 2;

  template <int kRows, int kColumns>
  struct Sums {
    INLINE void zero() {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kColumns; ++c) x[r][c] = _mm512_setzero_ps();
      }
    }
    INLINE void load(const float* from, int64_t column) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kColumns; ++c) {
          x[r][c] = _mm512_load_ps(from + c * column + 16 * r);
        }
      }
    }
    INLINE void store(float* to, int64_t column) const {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kColumns; ++c) {
          _mm512_store_ps(to + c * column + 16 * r, x[r][c]);
        }
      }
    }
    INLINE void multiply_add(const uint16_t* a, int64_t, const uint16_t* b, int64_t column,
                             int64_t pairs) {
      for (int64_t k = 0; k < pairs; ++k, a += 2, b += 32) {
        __m512bh right[kColumns];
#pragma GCC unroll 2
        for (int c = 0; c < kColumns; ++c) {
          right[c] = (__m512bh)_mm512_load_si512(b + c * column);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          int32_t pair;
          __builtin_memcpy(&pair, a + 32 * r, sizeof pair);
          const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
          for (int c = 0; c < kColumns; ++c) {
            x[r][c] = _mm512_dpbf16_ps(x[r][c], left, right[c]);
          }
        }
      }
    }
    __m512 x[kRows][kColumns];
  };
};

#include "tiles.inc"

}  // namespace

void work(const Attention& a, int64_t thread, int64_t threads) {
  work_with<Kernel>(a, thread, threads);
}

}  // namespace ISA
}  // namespace vllm_mmc
#endif
