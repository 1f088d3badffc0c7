# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What tests know of Whisper; its tiny checkpoint is in the wheel."""

import torch

from mmc_testing.checkpoints.common import WHISPER_ENCODER, HuggingFaceEncoder
from mmc_testing.writer import Recipe
from vllm_mmc.demo.checkpoints.whisper import WHISPER

RECIPES = {
    "whisper": Recipe.of(
        WHISPER,
        # encoder([items, 80, 3000]).last_hidden_state: [items, 1500, hidden]
        hf_encoders={"audio": HuggingFaceEncoder(WHISPER_ENCODER, "model.encoder.")},
        regions=("CompiledWhisperEncoderLayer",),
        sharded_inputs=lambda: {"input_features": torch.randn(3, 80, 3000)},
        serves="transcriptions",
    )
}
