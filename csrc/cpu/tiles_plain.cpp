// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
//
// The kernel of tiles.inc in plain C++, for any processor: it computes the same sums in the
// same order as vdpbf16ps and tdpbf16ps. Slow; tests compare the others with it, bit for bit.

#include <algorithm>
#include <memory>

#include "varlen_attention.h"

constexpr int kLanes = 16;

#define ISA plain_avx512_bf16
#define LIKE_AMX false
#include "tiles_plain.inc"
#undef ISA
#undef LIKE_AMX

#define ISA plain_amx
#define LIKE_AMX true
#include "tiles_plain.inc"
