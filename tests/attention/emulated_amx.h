// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
//
// The AMX instructions of csrc/cpu/tiles_amx.cpp in C++, as Intel's manual (volume 2,
// TDPBF16PS) has them: any shape that the configuration allows, by row and column. What the
// processor would refuse ends the process.

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Tile {
  int rows, bytes_of_row;
  uint8_t data[16][64];
};

thread_local Tile tiles[8];
thread_local bool configured = false;

inline void require(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}

inline Tile& tile(int index) {
  require(configured, "no configuration");
  require(0 <= index && index < 8 && tiles[index].rows, "no such tile");
  return tiles[index];
}

inline void loadconfig(const void* memory) {
  uint8_t config[64];
  std::memcpy(config, memory, sizeof config);
  require(config[0] == 1 && config[1] == 0, "palette 1, from row 0");
  for (int i = 2; i < 16; ++i) require(config[i] == 0, "reserved bytes are 0");
  for (int i = 0; i < 16; ++i) {
    const int bytes = config[16 + 2 * i] + 256 * config[17 + 2 * i], rows = config[48 + i];
    require(bytes <= 64 && rows <= 16 && !bytes == !rows, "rows, and bytes of a row");
    require(i < 8 || !rows, "eight tiles");
    if (i < 8) tiles[i] = {rows, bytes, {}};
  }
  configured = true;
}

inline void release() { configured = false; }

inline void zero(int index) { std::memset(tile(index).data, 0, sizeof tile(index).data); }

inline void loadd(int index, const void* from, int64_t stride) {
  Tile& t = tile(index);
  zero(index);
  for (int r = 0; r < t.rows; ++r) {
    std::memcpy(t.data[r], static_cast<const char*>(from) + r * stride, t.bytes_of_row);
  }
}

inline void stored(int index, void* to, int64_t stride) {
  const Tile& t = tile(index);
  for (int r = 0; r < t.rows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, t.data[r], t.bytes_of_row);
  }
}

inline float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? 0 * x : x; }

inline float bf16(const Tile& t, int row, int column) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<char*>(&bits) + 2, &t.data[row][2 * column], 2);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return flushed(x);
}

inline void dpbf16ps(int to, int left, int right) {
  Tile& c = tile(to);
  const Tile &a = tile(left), &b = tile(right);
  require(to != left && to != right && left != right, "three tiles");
  require(a.rows == c.rows && b.bytes_of_row == c.bytes_of_row && a.bytes_of_row == 4 * b.rows,
          "shapes that fit");
  for (int m = 0; m < c.rows; ++m) {
    float sums[32] = {};
    for (int k = 0; k < a.bytes_of_row / 4; ++k) {
      for (int n = 0; n < c.bytes_of_row / 4; ++n) {
        for (int i = 2 * n; i < 2 * n + 2; ++i) {
          sums[i] = flushed(__builtin_fmaf(bf16(a, m, 2 * k + i % 2), bf16(b, k, i), sums[i]));
        }
      }
    }
    for (int n = 0; n < c.bytes_of_row / 4; ++n) {
      float before;
      std::memcpy(&before, &c.data[m][4 * n], sizeof before);
      const float after = flushed(flushed(before) + flushed(sums[2 * n] + sums[2 * n + 1]));
      std::memcpy(&c.data[m][4 * n], &after, sizeof after);
    }
  }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated::loadconfig
#define _tile_release emulated::release
#define _tile_zero emulated::zero
#define _tile_loadd emulated::loadd
#define _tile_stored emulated::stored
#define _tile_dpbf16ps emulated::dpbf16ps
