# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The models of this package. Strings only: reading it imports no model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogEntry:
    """One architecture.

    Attributes:
        architecture: The name that checkpoints and vLLM know.
        model: "module:Class" of our model; the class name is registered too.
        regions: What is compiled, once each however many instances there are.
        stock: What vLLM compiles by itself with `compile_mm_encoder`.
        status: "tested" (every test of this package) or "experimental".
    """

    architecture: str
    model: str
    regions: tuple[str, ...]
    stock: str
    status: str

    @property
    def compiled_architecture(self) -> str:
        return self.model.partition(":")[2]

    @property
    def family(self) -> str:
        """Name of the model's module, and of its checkpoints' and benchmark's."""
        return self.model.partition(":")[0].rpartition(".")[2]


CATALOG = (
    CatalogEntry(
        architecture="Qwen2_5_VLForConditionalGeneration",
        model="vllm_mmc.models.qwen2_5_vl:CompiledQwen2_5_VLForConditionalGeneration",
        regions=("patch embed", "block", "merger"),
        stock="patch embed, every block anew, merger; crashes on CPU",
        status="tested",
    ),
    CatalogEntry(
        architecture="Llama4ForConditionalGeneration",
        model="vllm_mmc.models.llama4:CompiledLlama4ForConditionalGeneration",
        regions=("patch embed", "block", "pixel shuffle", "projector"),
        stock="the whole encoder as one graph, every block anew; crashes on CPU",
        status="tested",
    ),
    CatalogEntry(
        architecture="WhisperForConditionalGeneration",
        model="vllm_mmc.models.whisper:CompiledWhisperForConditionalGeneration",
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="Qwen3ASRForConditionalGeneration",
        model="vllm_mmc.models.qwen3_asr:CompiledQwen3ASRForConditionalGeneration",
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
)
