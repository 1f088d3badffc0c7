# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the config class that is published with Nemotron Nano Omni."""

from transformers import NemotronHConfig, PretrainedConfig


class NemotronVLConfig(PretrainedConfig):
    model_type = "NemotronH_Nano_VL_V2"
    sub_configs = {
        "vision_config": PretrainedConfig,
        "sound_config": PretrainedConfig,
        "llm_config": NemotronHConfig,
    }

    def __init__(
        self, vision_config=None, sound_config=None, llm_config=None, **kwargs
    ):
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.sound_config = PretrainedConfig(**(sound_config or {}))
        self.llm_config = NemotronHConfig(**(llm_config or {}))
        super().__init__(**kwargs)
