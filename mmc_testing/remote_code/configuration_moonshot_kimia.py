# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the config class that is published with Kimi-Audio."""

from transformers import Qwen2Config


class KimiAudioConfig(Qwen2Config):
    model_type = "kimi_audio"
