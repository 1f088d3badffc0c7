# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Compiled multimodal encoders for vLLM."""

__version__ = "0.1.0"
