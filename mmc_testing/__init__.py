# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny real checkpoints, tolerances, engine contexts: for the tests and the benchmarks.

Not part of the wheel; a checkout has it. What the command `vllm-mmc demo` needs too is
in `vllm_mmc.demo`. Importing this package imports nothing heavy; import the module that
you need (`checkpoints`, `parity`, `engine`).
"""
