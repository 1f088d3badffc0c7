// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project

#include <algorithm>
#include <memory>

#include "varlen_attention.h"

#ifdef __x86_64__
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512")
#define ISA avx512
constexpr int kLanes = 16;  // fp32
constexpr int kRegisters = 32;
#include "varlen_attention.inc"
#endif
