# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen3's forced aligner, with Qwen3-ASR's compiled encoder."""

from vllm.model_executor.models.qwen3_asr import (
    Qwen3ASRDummyInputsBuilder,
    Qwen3ASRMultiModalProcessor,
)
from vllm.model_executor.models.qwen3_asr_forced_aligner import (
    Qwen3ASRForcedAlignerForTokenClassification,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_mmc.models.qwen3_asr import (
    CompiledQwen3ASRProcessingInfo,
    SupportsCompiledQwen3Audio,
)


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3ASRMultiModalProcessor,
    info=CompiledQwen3ASRProcessingInfo,
    dummy_inputs=Qwen3ASRDummyInputsBuilder,
)
class CompiledQwen3ASRForcedAlignerForTokenClassification(
    SupportsCompiledQwen3Audio, Qwen3ASRForcedAlignerForTokenClassification
):
    pass
