# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen3-ASR on live audio, with the same compiled encoder."""

from vllm.model_executor.models.qwen3_asr import Qwen3ASRDummyInputsBuilder
from vllm.model_executor.models.qwen3_asr_realtime import (
    Qwen3ASRRealtimeGeneration,
    Qwen3ASRRealtimeMultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_mmc.models.qwen3_asr import (
    CompiledQwen3ASRProcessingInfo,
    SupportsCompiledQwen3Audio,
)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3ASRRealtimeMultiModalProcessor,
    info=CompiledQwen3ASRProcessingInfo,
    dummy_inputs=Qwen3ASRDummyInputsBuilder,
)
class CompiledQwen3ASRRealtimeGeneration(
    SupportsCompiledQwen3Audio, Qwen3ASRRealtimeGeneration
):
    pass
