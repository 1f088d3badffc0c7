# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The models of this package. Strings only: reading it imports no model."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from vllm_mmc import __version__


@dataclass(frozen=True)
class CatalogEntry:
    """One architecture.

    Attributes:
        architecture: The name that checkpoints and vLLM know.
        family: The name of its tiny checkpoint and of its benchmark.
        model: "module:Class" of our model; the class name is registered too.
        regions: What is compiled, once each however many instances there are.
        stock: What vLLM compiles by itself with `compile_mm_encoder`.
        mixin: "module:Class" of the mixin that makes our model of vLLM's, if our model
            has no code of its own.
    """

    architecture: str
    family: str
    model: str
    regions: tuple[str, ...]
    stock: str
    mixin: str | None = None

    @property
    def compiled_architecture(self) -> str:
        return compiled_name(self.model)


def compiled_name(model: str) -> str:
    """The architecture name under which a class of ours is registered too."""
    return model.partition(":")[2].partition("@")[0]


AUTO_MODULE = "vllm_mmc.models.auto"
"""The module that makes classes: `CompiledX` for vLLM's class X."""


def versioned(name: str, vllm_version: str) -> str:
    """ "module:Class" under which a class of ours is registered.

    vLLM keeps what it knows of a class in a file of that name, and reads the file for
    as long as the module has the same text. Another release of vLLM, or of this
    package, may have another class.
    """
    versions = f"{vllm_version}-{__version__}".replace("+", "-")
    return f"{AUTO_MODULE}:{name}@{versions}"


_QWEN3_AUDIO = "vllm_mmc.models.qwen3_asr:SupportsCompiledQwen3Audio"
_QWEN2_5_OMNI = (
    "vllm_mmc.models.qwen2_5_omni:CompiledQwen2_5OmniThinkerForConditionalGeneration"
)
_QWEN2_5_OMNI_REGIONS = ("audio block", "patch embed", "vision block", "merger")

CATALOG = (
    CatalogEntry(
        architecture="Qwen2_5_VLForConditionalGeneration",
        family="qwen2_5_vl",
        model="vllm_mmc.models.qwen2_5_vl:CompiledQwen2_5_VLForConditionalGeneration",
        regions=("patch embed", "block", "merger"),
        stock="patch embed, every block anew, merger; crashes on CPU",
    ),
    CatalogEntry(
        architecture="Llama4ForConditionalGeneration",
        family="llama4",
        model="vllm_mmc.models.llama4:CompiledLlama4ForConditionalGeneration",
        regions=("patch embed", "block", "pixel shuffle", "projector"),
        stock="the whole encoder as one graph, every block anew; crashes on CPU",
    ),
    CatalogEntry(
        architecture="WhisperForConditionalGeneration",
        family="whisper",
        model="vllm_mmc.models.whisper:CompiledWhisperForConditionalGeneration",
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="Qwen3ASRForConditionalGeneration",
        family="qwen3_asr",
        model=f"{AUTO_MODULE}:CompiledQwen3ASRForConditionalGeneration",
        mixin=_QWEN3_AUDIO,
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="Qwen3ASRRealtimeGeneration",
        family="qwen3_asr_realtime",
        model=f"{AUTO_MODULE}:CompiledQwen3ASRRealtimeGeneration",
        mixin=_QWEN3_AUDIO,
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="Qwen3ASRForcedAlignerForTokenClassification",
        family="qwen3_asr_forced_aligner",
        model=f"{AUTO_MODULE}:CompiledQwen3ASRForcedAlignerForTokenClassification",
        mixin=_QWEN3_AUDIO,
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="Qwen2AudioForConditionalGeneration",
        family="qwen2_audio",
        model="vllm_mmc.models.qwen2_audio:CompiledQwen2AudioForConditionalGeneration",
        regions=("block",),
        stock="nothing: Hugging Face's encoder",
    ),
    CatalogEntry(
        architecture="AudioFlamingo3ForConditionalGeneration",
        family="audioflamingo3",
        model=(
            "vllm_mmc.models.audioflamingo3:"
            "CompiledAudioFlamingo3ForConditionalGeneration"
        ),
        regions=("block",),
        stock="nothing: Hugging Face's layers",
    ),
    CatalogEntry(
        architecture="Qwen2_5OmniModel",
        family="qwen2_5_omni",
        model=_QWEN2_5_OMNI,
        regions=_QWEN2_5_OMNI_REGIONS,
        stock="of vision as Qwen2.5-VL; of audio nothing: Hugging Face's encoder",
    ),
    CatalogEntry(
        architecture="Qwen2_5OmniForConditionalGeneration",
        family="qwen2_5_omni",
        model=_QWEN2_5_OMNI,
        regions=_QWEN2_5_OMNI_REGIONS,
        stock="of vision as Qwen2.5-VL; of audio nothing: Hugging Face's encoder",
    ),
    CatalogEntry(
        architecture="Qwen3OmniMoeForConditionalGeneration",
        family="qwen3_omni",
        model=f"{AUTO_MODULE}:CompiledQwen3OmniMoeThinkerForConditionalGeneration",
        mixin=_QWEN3_AUDIO,
        regions=("audio block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="ClefOmniForJointSchema",
        family="clef_omni",
        model=f"{AUTO_MODULE}:CompiledClefOmniForJointSchema",
        mixin=_QWEN3_AUDIO,
        regions=("audio block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="UltravoxModel",
        family="ultravox",
        model="vllm_mmc.models.ultravox:CompiledUltravoxModel",
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="VoxtralForConditionalGeneration",
        family="voxtral",
        model="vllm_mmc.models.voxtral:CompiledVoxtralForConditionalGeneration",
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="MoonshotKimiaForCausalLM",
        family="kimi_audio",
        model="vllm_mmc.models.kimi_audio:CompiledKimiAudioForConditionalGeneration",
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="MossTranscribeDiarizeForConditionalGeneration",
        family="moss_transcribe_diarize",
        model=(
            "vllm_mmc.models.moss_transcribe_diarize:"
            "CompiledMossTranscribeDiarizeForConditionalGeneration"
        ),
        regions=("block",),
        stock="nothing",
    ),
    CatalogEntry(
        architecture="MiniCPMO",
        family="minicpmo",
        model="vllm_mmc.models.minicpmo:CompiledMiniCPMO",
        regions=("audio block",),
        stock="nothing: Hugging Face's layers",
    ),
)

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
    "ColUltraVBertForRetrieval",
    "ModernVBertModel",
    "ColQwen3",
    "ColQwen3_5",
    "OpsColQwen3Model",
    "Qwen3VLNemotronEmbedModel",
    # Classification
    "ClefFlashForJointSchema",
    "D3ForSequenceClassification",
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
"""Multimodal architectures that the registry of a supported vLLM has in other tables. A
test compares them with vLLM's classes."""

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

REWRITES = {
    name: f"vllm_mmc.models.{module}:ENCODER_REWRITES"
    for name, module in {
        "CohereAsrForConditionalGeneration": "cohere_asr",
        "EmbeddingGemma2Model": "gemma_audio",
        "FireRedASR2ForConditionalGeneration": "fireredasr2",
        "Gemma3nForConditionalGeneration": "gemma_audio",
        "Gemma4ForConditionalGeneration": "gemma_audio",
        "GraniteSpeechForConditionalGeneration": "granite_speech",
        "GraniteSpeechPlusForConditionalGeneration": "granite_speech",
        "NemotronH_Nano_Omni_Reasoning_V3": "parakeet",
        "NemotronH_Nano_VL_V2": "parakeet",
        "NemotronH_Omni_Reasoning_V3": "parakeet",
        "NemotronH_Super_Omni_Reasoning_V3": "parakeet",
    }.items()
}
"""Architecture -> "module:NAME" of the classes that are exchanged before its encoder is
surveyed (`EncoderPlan.classes`)."""


def surveyed(
    multimodal: Iterable[str], known: Container[str], vllm_version: str
) -> dict[str, str]:
    """The architectures without a row: their encoders are surveyed.

    Args:
        multimodal: Names in vLLM's table of multimodal models.
        known: All names in vLLM's registry.
        vllm_version: See `versioned`.

    Returns:
        Architecture -> "module:Class".
    """
    done = {entry.architecture for entry in CATALOG} | set(EAGER)
    others = (name for name in OUTSIDE_THE_MULTIMODAL_TABLE if name in known)
    return {
        name: versioned(f"Compiled{name}", vllm_version)
        for name in sorted({*multimodal, *others} - done)
    }
