# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the config class that is published with Phi-4-multimodal."""

from transformers import Phi3Config


class Phi4MMConfig(Phi3Config):
    model_type = "phi4mm"

    def __init__(
        self, img_processor=None, audio_processor=None, embd_layer=None, **kwargs
    ):
        self.img_processor = img_processor
        self.audio_processor = audio_processor
        self.embd_layer = embd_layer
        super().__init__(**kwargs)
