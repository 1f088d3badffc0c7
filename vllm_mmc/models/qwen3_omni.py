# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen3-Omni with Qwen3-ASR's compiled audio encoder."""

from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeThinkerDummyInputsBuilder,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerMultiModalProcessor,
    Qwen3OmniMoeThinkerProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_mmc.models.interfaces import RefusesBadAudio
from vllm_mmc.models.qwen3_asr import SupportsCompiledQwen3Audio


class CompiledQwen3OmniMoeThinkerProcessingInfo(
    RefusesBadAudio, Qwen3OmniMoeThinkerProcessingInfo
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3OmniMoeThinkerMultiModalProcessor,
    info=CompiledQwen3OmniMoeThinkerProcessingInfo,
    dummy_inputs=Qwen3OmniMoeThinkerDummyInputsBuilder,
)
class CompiledQwen3OmniMoeThinkerForConditionalGeneration(
    SupportsCompiledQwen3Audio, Qwen3OmniMoeThinkerForConditionalGeneration
):
    pass
