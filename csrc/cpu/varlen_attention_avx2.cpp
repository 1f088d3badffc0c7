// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project

#include <algorithm>
#include <memory>

#include "varlen_attention.h"

#ifdef __x86_64__
#pragma GCC target("avx2,fma,f16c")
#define ISA avx2
constexpr int kLanes = 8;  // fp32
constexpr int kRegisters = 16;
#include "varlen_attention.inc"
#endif
