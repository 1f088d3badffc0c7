# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What `vllm-mmc prove` and the benchmarks measure with.

Importing this package imports nothing heavy.
"""
