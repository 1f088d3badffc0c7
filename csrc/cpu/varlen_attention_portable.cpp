// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project

#include <algorithm>
#include <memory>

#include "varlen_attention.h"

#define ISA portable
constexpr int kLanes = 4;  // fp32
constexpr int kRegisters = 16;
#include "varlen_attention.inc"
