# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the config class that is published with MiniCPM-V 2.6."""

from transformers import Qwen2Config, SiglipVisionConfig


class MiniCPMVConfig(Qwen2Config):
    model_type = "minicpmv"

    def __init__(self, vision_config=None, **kwargs):
        self.vision_config = SiglipVisionConfig(**(vision_config or {}))
        super().__init__(**kwargs)
