# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Sizes of encoder inputs, in packed tokens: which get graphs, how often they come."""
