// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
//
// What is visible from outside, and the choice of the instruction set.

#include "varlen_attention.h"

#include <cstring>

using vllm_mmc::Attention;
using vllm_mmc::Worker;

namespace {

struct Level {
  const char* name;
  Worker work;
  bool (*runs_here)();
};

// Best first.
const Level kLevels[] = {
#ifdef __x86_64__
    {"avx512", vllm_mmc::avx512::work,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {"avx2", vllm_mmc::avx2::work,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", vllm_mmc::portable::work, [] { return true; }},
};

const Level* level_at(int index) {
  for (const Level& level : kLevels) {
    if (level.runs_here() && index-- == 0) return &level;
  }
  return nullptr;
}

struct Call {
  const Attention& attention;
  Worker work;
  int64_t threads;
};

// Rows of `out` that no item covers.
void clear(const Attention& a, int64_t from, int64_t to) {
  const int64_t width = a.dtype == vllm_mmc::Dtype::kFloat32 ? 4 : 2;
  for (int64_t token = from; token < to; ++token) {
    for (int64_t head = 0; head < a.heads; ++head) {
      std::memset(static_cast<char*>(a.out.data) + width * (token * a.out.token_stride +
                                                            head * a.out.head_stride),
                  0, width * a.head_size);
    }
  }
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// torch's torch_parallel_for, or anything like it; returns 0 if all went well.
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                void (*body)(int64_t, int64_t, void*), void* context);

// The instruction sets this processor runs, best first; null after the last.
EXPORT const char* vllm_mmc_level(int32_t index) {
  const Level* level = level_at(index);
  return level ? level->name : nullptr;
}

// 0; 1 if cu_seqlens does not ascend from 0 or more to at most `tokens`; 2 if a thread
// failed, which is for want of memory.
EXPORT int32_t vllm_mmc_varlen_attention(const Attention* attention, int32_t level,
                                  int64_t threads, ParallelFor parallel_for) {
  const Attention& a = *attention;
  if (a.cu_seqlens) {
    int64_t before = 0;
    for (int64_t i = 0; i <= a.items; ++i) {
      if (a.cu_seqlens[i] < before || a.cu_seqlens[i] > a.tokens) return 1;
      before = a.cu_seqlens[i];
    }
    clear(a, 0, a.cu_seqlens[0]);
    clear(a, a.cu_seqlens[a.items], a.tokens);
  }
  const Call call{a, level_at(level)->work, threads};
  return parallel_for(
             0, threads, 1,
             [](int64_t begin, int64_t end, void* context) {
               const Call& c = *static_cast<Call*>(context);
               for (; begin < end; ++begin) c.work(c.attention, begin, c.threads);
             },
             const_cast<Call*>(&call))
             ? 2
             : 0;
}
}
