# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project

from vllm_mmc.compat import mkl_functions

mkl_functions.resolve()  # before an encoder computes its tables
