# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Voxtral (offline) with Whisper's encoder: one graph for any number of layers."""

from vllm.model_executor.models.voxtral import (
    VoxtralForConditionalGeneration,
)
from vllm.model_executor.models.whisper import WhisperEncoder

from vllm_mmc.encoder.interfaces import EncoderPlan, SupportsCompiledEncoder
from vllm_mmc.models.whisper import CLASSES, CompiledWhisperEncoder


class CompiledVoxtralWhisperEncoder(CompiledWhisperEncoder):
    def max_packed_tokens(self, embeddings: int) -> int:
        return 0  # unknown: vLLM's profile run exceeds its own budget


class CompiledVoxtralForConditionalGeneration(
    SupportsCompiledEncoder, VoxtralForConditionalGeneration
):
    encoder_plan = EncoderPlan(
        classes=CLASSES | {WhisperEncoder: CompiledVoxtralWhisperEncoder}
    )
