# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Tiny real checkpoints, real pictures, tolerances and engine helpers.

Shared by the tests, the demo and the benchmarks. Importing this package imports
nothing heavy; import the module that you need (`checkpoints`, `media`, `parity`,
`engine`).
"""
