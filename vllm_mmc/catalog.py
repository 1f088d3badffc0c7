# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The models of this package. Strings only: reading it imports no model."""

from collections.abc import Container, Iterable
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
        return compiled_name(self.model)

    @property
    def family(self) -> str:
        """Name of the model's module, and of its checkpoints' and benchmark's."""
        return self.model.partition(":")[0].rpartition(".")[2]


def compiled_name(model: str) -> str:
    """The architecture name under which a class of ours is registered too."""
    return model.partition(":")[2].partition("@")[0]


_QWEN2_5_OMNI = (
    "vllm_mmc.models.qwen2_5_omni:CompiledQwen2_5OmniThinkerForConditionalGeneration"
)
_QWEN2_5_OMNI_REGIONS = ("audio block", "patch embed", "vision block", "merger")

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
    CatalogEntry(
        architecture="Qwen3ASRRealtimeGeneration",
        model="vllm_mmc.models.qwen3_asr_realtime:CompiledQwen3ASRRealtimeGeneration",
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="Qwen3ASRForcedAlignerForTokenClassification",
        model=(
            "vllm_mmc.models.qwen3_asr_forced_aligner:"
            "CompiledQwen3ASRForcedAlignerForTokenClassification"
        ),
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="Qwen2AudioForConditionalGeneration",
        model="vllm_mmc.models.qwen2_audio:CompiledQwen2AudioForConditionalGeneration",
        regions=("block",),
        stock="nothing: Hugging Face's encoder",
        status="tested",
    ),
    CatalogEntry(
        architecture="AudioFlamingo3ForConditionalGeneration",
        model=(
            "vllm_mmc.models.audioflamingo3:"
            "CompiledAudioFlamingo3ForConditionalGeneration"
        ),
        regions=("block",),
        stock="nothing: Hugging Face's layers",
        status="tested",
    ),
    CatalogEntry(
        architecture="Qwen2_5OmniModel",
        model=_QWEN2_5_OMNI,
        regions=_QWEN2_5_OMNI_REGIONS,
        stock="of vision as Qwen2.5-VL; of audio nothing: Hugging Face's encoder",
        status="tested",
    ),
    CatalogEntry(
        architecture="Qwen2_5OmniForConditionalGeneration",
        model=_QWEN2_5_OMNI,
        regions=_QWEN2_5_OMNI_REGIONS,
        stock="of vision as Qwen2.5-VL; of audio nothing: Hugging Face's encoder",
        status="tested",
    ),
    CatalogEntry(
        architecture="Qwen3OmniMoeForConditionalGeneration",
        model=(
            "vllm_mmc.models.qwen3_omni:"
            "CompiledQwen3OmniMoeThinkerForConditionalGeneration"
        ),
        regions=("audio block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="ClefOmniForJointSchema",
        model="vllm_mmc.models.clef_omni:CompiledClefOmniForJointSchema",
        regions=("audio block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="UltravoxModel",
        model="vllm_mmc.models.ultravox:CompiledUltravoxModel",
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="VoxtralForConditionalGeneration",
        model="vllm_mmc.models.voxtral:CompiledVoxtralForConditionalGeneration",
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="MoonshotKimiaForCausalLM",
        model="vllm_mmc.models.kimi_audio:CompiledKimiAudioForConditionalGeneration",
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="MossTranscribeDiarizeForConditionalGeneration",
        model=(
            "vllm_mmc.models.moss_transcribe_diarize:"
            "CompiledMossTranscribeDiarizeForConditionalGeneration"
        ),
        regions=("block",),
        stock="nothing",
        status="tested",
    ),
    CatalogEntry(
        architecture="MiniCPMO",
        model="vllm_mmc.models.minicpmo:CompiledMiniCPMO",
        regions=("audio block",),
        stock="nothing: Hugging Face's layers",
        status="tested",
    ),
)

AUTO_MODULE = "vllm_mmc.models.auto"

OUTSIDE_THE_MULTIMODAL_TABLE = (
    # Text generation
    "HCXVisionV2ForCausalLM",
    "MuseGlimmerForCausalLM",
    # Embedding
    "CLIPModel",
    "ColPaliForRetrieval",
    "EmbeddingGemma2Model",
    "LlamaNemotronVLModel",
    "LlavaNextForConditionalGeneration",
    "Phi3VForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "SiglipModel",
    # Late interaction
    "ColModernVBertForRetrieval",
    "ColQwen3",
    "ColQwen3_5",
    "OpsColQwen3Model",
    "Qwen3VLNemotronEmbedModel",
    # Classification
    "JinaVLForRanking",
    "LlamaNemotronVLForSequenceClassification",
    # Transformers backend
    "Emu3ForConditionalGeneration",
    "HunYuanVLForConditionalGeneration",
    "TransformersMultiModalEmbeddingModel",
    "TransformersMultiModalForCausalLM",
    "TransformersMultiModalForSequenceClassification",
    "TransformersMultiModalMoEForCausalLM",
    "VibeVoiceAsrForConditionalGeneration",
)
"""Multimodal architectures that vLLM's registry has in other tables. A test compares
them with vLLM's classes."""

EAGER = {
    "Gemma4UnifiedForConditionalGeneration": (
        "it has no encoder: patches go to the language model as they are"
    ),
    "InklingForConditionalGeneration": (
        "its encoder has no blocks: a few linear layers for pictures, a table for sound"
    ),
    "Terratorch": (
        "it is an encoder without a language model, and runs in terratorch's own runner"
    ),
    "VoxtralRealtimeGeneration": (
        "its encoder attends through the decoder's cache and is part of the decoder's "
        "graph, which vLLM compiles"
    ),
}
"""Architecture -> why its encoder stays eager. vLLM's own class serves it."""


def surveyed(
    multimodal: Iterable[str], known: Container[str], vllm_version: str
) -> dict[str, str]:
    """The architectures without a row: their encoders are surveyed.

    Args:
        multimodal: Names in vLLM's table of multimodal models.
        known: All names in vLLM's registry.
        vllm_version: Becomes part of the class name, because vLLM keeps what it knows
            of a class under that name, and the stock class may be another in another
            release.

    Returns:
        Architecture -> "module:Class".
    """
    done = {entry.architecture for entry in CATALOG} | set(EAGER)
    others = (name for name in OUTSIDE_THE_MULTIMODAL_TABLE if name in known)
    return {
        name: f"{AUTO_MODULE}:Compiled{name}@{vllm_version}"
        for name in sorted({*multimodal, *others} - done)
    }
