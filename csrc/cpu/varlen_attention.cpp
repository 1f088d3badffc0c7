// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
//
// What is visible from outside, and the choice of the instruction set.

#include "varlen_attention.h"

#include <cstring>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

using vllm_mmc::Attention;
using vllm_mmc::Dtype;
using vllm_mmc::Worker;

namespace {

enum State : int32_t { kRuns = 0, kNotOfProcessor = 1, kNotOfSystem = 2, kNotCompiled = 3 };

State runs_if(bool of_processor) { return of_processor ? kRuns : kNotOfProcessor; }

State anywhere() { return kRuns; }

#ifdef __x86_64__
State avx2() {
  return runs_if(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
}

State avx512() {
  return runs_if(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
}

State avx512_bf16() {
  unsigned a = 0, b, c, d;
  __get_cpuid_count(7, 1, &a, &b, &c, &d);
  if (avx512() || !(a & 1u << 5)) return kNotOfProcessor;
#ifdef HAS_AVX512_BF16
  return kRuns;
#else
  return kNotCompiled;
#endif
}

State amx() {
  if (avx512_bf16() == kNotOfProcessor) return kNotOfProcessor;
#ifndef EMULATED_AMX
  unsigned a, b, c, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  const unsigned tiles = 1u << 24, bf16 = 1u << 22;
  if (!(d & tiles && d & bf16)) return kNotOfProcessor;
#ifdef __linux__  // a process asks for the registers: ARCH_REQ_XCOMP_PERM, of tile data
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  if (!granted) return kNotOfSystem;
#endif
#endif
#ifdef HAS_AMX
  return kRuns;
#else
  return kNotCompiled;
#endif
}
#endif

struct Level {
  const char* name;
  State (*state)();
  Worker work;
  Worker work_bf16;
};

// Best first. The last two are for tests.
const Level kLevels[] = {
#ifdef __x86_64__
#ifdef HAS_AMX
    {"amx", amx, vllm_mmc::avx512::work, vllm_mmc::amx::work},
#else
    {"amx", amx, nullptr, nullptr},
#endif
#ifdef HAS_AVX512_BF16
    {"avx512_bf16", avx512_bf16, vllm_mmc::avx512::work, vllm_mmc::avx512_bf16::work},
#else
    {"avx512_bf16", avx512_bf16, nullptr, nullptr},
#endif
    {"avx512", avx512, vllm_mmc::avx512::work, vllm_mmc::avx512::work},
    {"avx2", avx2, vllm_mmc::avx2::work, vllm_mmc::avx2::work},
#endif
    {"portable", anywhere, vllm_mmc::portable::work, vllm_mmc::portable::work},
    {"plain_amx", anywhere, vllm_mmc::portable::work, vllm_mmc::plain_amx::work},
    {"plain_avx512_bf16", anywhere, vllm_mmc::portable::work,
     vllm_mmc::plain_avx512_bf16::work},
};

struct Call {
  const Attention& attention;
  Worker work;
  int64_t threads;
};

// Rows of `out` that no item covers.
void clear(const Attention& a, int64_t from, int64_t to) {
  const int64_t width = a.dtype == Dtype::kFloat32 ? 4 : 2;
  for (int64_t token = from; token < to; ++token) {
    for (int64_t head = 0; head < a.heads; ++head) {
      std::memset(static_cast<char*>(a.out.data) +
                      width * (token * a.out.token_stride + head * a.out.head_stride),
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

// The caller's struct must have the same form: a library can be older than its caller.
EXPORT int64_t vllm_mmc_attention_size() { return sizeof(Attention); }

// The instruction sets, best first, and whether each runs here; null after the last.
EXPORT const char* vllm_mmc_level(int32_t index, int32_t* state) {
  if (index >= static_cast<int32_t>(sizeof kLevels / sizeof *kLevels)) return nullptr;
  *state = kLevels[index].state();
  return kLevels[index].name;
}

// 0; 1 if cu_seqlens does not ascend from 0 or more to at most `tokens`; 2 if a thread
// failed, which is for want of memory. `level` must run here.
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
  const Level& found = kLevels[level];
  const Worker work = a.dtype == Dtype::kBFloat16 ? found.work_bf16 : found.work;
  const Call call{a, work, threads};
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
