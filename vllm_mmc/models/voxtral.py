# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Voxtral (offline) with Whisper's compiled encoder: one graph, whatever the depth."""

from vllm.model_executor.models.voxtral import (
    VoxtralDummyInputsBuilder,
    VoxtralForConditionalGeneration,
    VoxtralMultiModalProcessor,
    VoxtralProcessingInfo,
)
from vllm.model_executor.models.whisper import WhisperEncoder
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_mmc.models.interfaces import RefusesBadAudio, SupportsCompiledEncoder
from vllm_mmc.models.whisper import ENCODER_REGIONS, CompiledWhisperEncoder


class CompiledVoxtralWhisperEncoder(CompiledWhisperEncoder):
    def encoder_tokens(self, embeddings: int) -> int:
        return 0  # not known: vLLM profiles with more than its own budget


class CompiledVoxtralProcessingInfo(RefusesBadAudio, VoxtralProcessingInfo):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    VoxtralMultiModalProcessor,
    info=CompiledVoxtralProcessingInfo,
    dummy_inputs=VoxtralDummyInputsBuilder,
)
class CompiledVoxtralForConditionalGeneration(
    SupportsCompiledEncoder, VoxtralForConditionalGeneration
):
    encoder_regions = ENCODER_REGIONS | {WhisperEncoder: CompiledVoxtralWhisperEncoder}
