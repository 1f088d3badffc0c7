// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project

#include "varlen_attention.h"

#ifdef HAS_AMX
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own intrinsics
#include <immintrin.h>

#include <algorithm>
#include <memory>

#ifdef EMULATED_AMX  // a header that takes the instructions' place, for tests
#include EMULATED_AMX
#endif

#pragma GCC target(                                                             \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16," \
    "prefer-vector-width=512")
#define ISA amx
constexpr int kLanes = 16;

namespace vllm_mmc {
namespace ISA {
namespace {

#include "tiles_avx512.inc"

// The intrinsics do not tell the compiler that they read and write memory.
inline __attribute__((always_inline)) void fence() { asm volatile("" ::: "memory"); }

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// tdpbf16ps adds up the even elements of a row from 0, and the odd ones, each product
// rounded into its sum; then both sums, then that to what is there. Numbers below 2^-126
// are 0 to it, before and after.
struct Machine : Avx512 {
  static constexpr int kFewRows = 16, kMostRows = 32, kWide = 2;

  Machine() {
    const Config config;
    fence();
    _tile_loadconfig(&config);
  }
  ~Machine() { _tile_release(); }

  // Sums are in tiles 0 to 3, row by row; left in 4 and 5, right in 6 and 7.
  template <int kRows, int kColumns>
  struct Sums {
    static constexpr bool kTall = kRows == 32, kBroad = kColumns == 2;
    INLINE void zero() {
      _tile_zero(0);
      if constexpr (kBroad) _tile_zero(1);
      if constexpr (kTall) _tile_zero(2);
      if constexpr (kTall && kBroad) _tile_zero(3);
    }
    INLINE void load(const float* from, int64_t column) {
      fence();
      _tile_loadd(0, from, 64);
      if constexpr (kBroad) _tile_loadd(1, from + column, 64);
      if constexpr (kTall) _tile_loadd(2, from + 256, 64);
      if constexpr (kTall && kBroad) _tile_loadd(3, from + column + 256, 64);
    }
    INLINE void store(float* to, int64_t column) const {
      _tile_stored(0, to, 64);
      if constexpr (kBroad) _tile_stored(1, to + column, 64);
      if constexpr (kTall) _tile_stored(2, to + 256, 64);
      if constexpr (kTall && kBroad) _tile_stored(3, to + column + 256, 64);
      fence();
    }
    INLINE void multiply_add(const uint16_t* a, int64_t row, const uint16_t* b, int64_t column,
                             int64_t) {
      fence();
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kBroad) {
        _tile_loadd(7, b + column, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kTall) {
        _tile_loadd(5, a + row, 64);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kBroad) _tile_dpbf16ps(3, 5, 7);
      }
    }
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
