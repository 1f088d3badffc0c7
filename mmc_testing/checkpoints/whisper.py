# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What tests know of Whisper; its tiny checkpoint is in the wheel."""

import torch

from mmc_testing.hf_encoders import whisper_encoder
from mmc_testing.writer import Recipe
from vllm_mmc.demo.checkpoints.whisper import RECIPE

RECIPES = {
    "whisper": Recipe.of(
        RECIPE,
        hf_encoders=whisper_encoder("model.encoder."),
        regions=("CompiledWhisperEncoderLayer",),
        sharded_inputs=lambda: {"input_features": torch.randn(3, 80, 3000)},
        serves="transcriptions",
    )
}
