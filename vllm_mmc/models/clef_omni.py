# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Clef-Omni with Qwen3-ASR's compiled audio encoder."""

from vllm.model_executor.models.clef_omni import (
    ClefOmniForJointSchema,
    ClefOmniMultiModalProcessor,
)
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeThinkerDummyInputsBuilder,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_mmc.models.qwen3_asr import SupportsCompiledQwen3Audio
from vllm_mmc.models.qwen3_omni import CompiledQwen3OmniMoeThinkerProcessingInfo


@MULTIMODAL_REGISTRY.register_processor(
    ClefOmniMultiModalProcessor,
    info=CompiledQwen3OmniMoeThinkerProcessingInfo,
    dummy_inputs=Qwen3OmniMoeThinkerDummyInputsBuilder,
)
class CompiledClefOmniForJointSchema(
    SupportsCompiledQwen3Audio, ClefOmniForJointSchema
):
    pass
