# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Builders of the tiny checkpoints that `vllm-mmc demo` offers everywhere."""
