# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Which tower tests stand for the encoders of an architecture, for all of vLLM 0.32,
and what other releases have beside these architectures or lack.

`docs/architectures.md` and `docs/supported-versions.md` are made from it;
tests/unit/test_census.py compares it with the installed vLLM. Names of towers are keys
of `TOWERS` or `CANNOT` in tests/encoder/towers.py. No model is imported here.
"""

from collections.abc import Mapping

_LLAVA = ("clip", "siglip", "pixtral_hf")
_NEMOTRON = ("radio_tile", "radio_dyn", "parakeet")

CENSUS: Mapping[str, tuple[str, ...]] = {
    "AriaForConditionalGeneration": ("aria",),
    "AudioFlamingo3ForConditionalGeneration": ("audioflamingo3",),
    "BagelForConditionalGeneration": ("siglip",),
    "BailingMoeV3VLForConditionalGeneration": ("bailing_moe_v3_vl",),
    "BeeForConditionalGeneration": _LLAVA,
    "Blip2ForConditionalGeneration": ("blip", "blip2_qformer"),
    "ClefOmniForJointSchema": ("qwen3_omni_audio", "qwen3_omni_vision"),
    "CLIPModel": ("clip",),
    "Cohere2VisionForConditionalGeneration": ("siglip",),
    "CohereAsrForConditionalGeneration": ("cohere_asr",),
    "CohereCompassForConditionalGeneration": ("cohere_compass",),
    "ColModernVBertForRetrieval": ("colmodernvbert",),
    "ColPaliForRetrieval": ("siglip",),
    "ColQwen3": ("qwen3_vl",),
    "ColQwen3_5": ("qwen3_vl",),
    "Cosmos3EdgeForConditionalGeneration": ("cosmos3_edge",),
    "Cosmos3ForConditionalGeneration": ("qwen3_vl",),
    "DeepseekOCR2ForCausalLM": ("deepencoder_sam", "deepencoder2_resampler"),
    "DeepseekOCRForCausalLM": ("deepencoder_sam", "deepclip"),
    "DeepseekV41ForCausalLM": ("deepseek_v41",),
    "DeepseekV4ForConditionalGeneration": ("deepseek_v41",),
    "DeepseekVLV2ForCausalLM": ("deepseek_vl2",),
    "DiffusionGemmaForBlockDiffusion": ("gemma4_vision",),
    "Dots3NoteForCausalLM": ("dots3_note",),
    "DotsOCRForCausalLM": ("dots_ocr",),
    "Eagle2_5_VLForConditionalGeneration": ("siglip",),
    "EmbeddingGemma2Model": ("gemma4_vision", "gemma4_audio"),
    "Emu3ForConditionalGeneration": (),
    "Ernie4_5_VLMoeForConditionalGeneration": ("ernie45_vl",),
    "Exaone4_5_ForConditionalGeneration": ("exaone4_5",),
    "FireRedASR2ForConditionalGeneration": ("fireredasr2",),
    "FunASRForConditionalGeneration": ("funasr", "funasr_adaptor"),
    "FunAudioChatForConditionalGeneration": ("funaudiochat", "funaudiochat_discrete"),
    "Gemma3ForConditionalGeneration": ("siglip",),
    "Gemma3nForConditionalGeneration": ("gemma3n_vision", "gemma3n_audio"),
    "Gemma4ForConditionalGeneration": ("gemma4_vision", "gemma4_audio"),
    "Gemma4UnifiedForConditionalGeneration": (),
    "GLM4VForCausalLM": ("eva2clip",),
    "Glm4vForConditionalGeneration": ("glm4_1v",),
    "Glm4vMoeForConditionalGeneration": ("glm4_1v",),
    "Glm5NextForConditionalGeneration": ("glm5next",),
    "GlmAsrForConditionalGeneration": ("glmasr",),
    "GlmOcrForConditionalGeneration": ("glm_ocr",),
    "Granite4VisionForConditionalGeneration": ("siglip", "blip2_qformer"),
    "GraniteSpeechForConditionalGeneration": ("granite_speech", "blip2_qformer"),
    "GraniteSpeechPlusForConditionalGeneration": (
        "granite_speech_plus",
        "blip2_qformer",
    ),
    "H2OVLChatModel": ("intern_vit",),
    "HCXVisionV2ForCausalLM": ("qwen2_5_vl",),
    "HfMoondream": ("moondream3",),
    "HunYuanVLForConditionalGeneration": (),
    "Idefics3ForConditionalGeneration": ("idefics2",),
    "InklingForConditionalGeneration": (),
    "InternS1ForConditionalGeneration": ("interns1_vit",),
    "InternS1ProForConditionalGeneration": ("qwen3_vl",),
    "InternS2MobiusForConditionalGeneration": ("qwen3_vl",),
    "InternS2PreviewForConditionalGeneration": ("qwen3_vl",),
    "InternVLChatModel": ("intern_vit",),
    "InternVLForConditionalGeneration": ("interns1_vit",),
    "IsaacForConditionalGeneration": ("isaac",),
    "JinaVLForRanking": ("qwen2_vl",),
    "KananaVForConditionalGeneration": ("kanana_v",),
    "KeyeForConditionalGeneration": ("keye",),
    "KeyeVL1_5ForConditionalGeneration": ("keye",),
    "KimiK25ForConditionalGeneration": ("kimi_k25",),
    "KimiK3ForConditionalGeneration": ("kimi_k25",),
    "KimiVLForConditionalGeneration": ("moonvit",),
    "Lfm2VlForConditionalGeneration": ("lfm2_siglip2",),
    "LightOnOCRForConditionalGeneration": ("pixtral_hf",),
    "Llama4ForConditionalGeneration": ("mllama4",),
    "Llama_Nemotron_Nano_VL": ("llama_nemotron_nano_vl",),
    "LlamaNemotronVLForSequenceClassification": ("siglip",),
    "LlamaNemotronVLModel": ("siglip",),
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA,
    "LlavaNextVideoForConditionalGeneration": _LLAVA,
    "LlavaOnevision2ForConditionalGeneration": ("llava_onevision2",),
    "LlavaOnevisionForConditionalGeneration": _LLAVA,
    "MiDashengLMModel": ("midashenglm",),
    "MiMoV2OmniForCausalLM": ("mimo_vision", "mimo_vision_windows", "mimo_audio"),
    "MiniCPMO": ("idefics2", "minicpmo_audio"),
    "MiniCPMV": ("idefics2", "minicpmv2"),
    "MiniCPMV4_6ForConditionalGeneration": ("idefics2",),
    "MiniCPMV4_7ForConditionalGeneration": ("idefics2",),
    "MiniMaxM3SparseForConditionalGeneration": ("minimax_m3",),
    "Mistral3ForConditionalGeneration": ("pixtral_hf",),
    "Molmo2ForConditionalGeneration": ("molmo2",),
    "MolmoForCausalLM": ("molmo",),
    "Moondream3ForCausalLM": ("moondream3",),
    "MoonshotKimiaForCausalLM": ("kimi_audio",),
    "MossAudioModel": ("moss_audio",),
    "MossTranscribeDiarizeForConditionalGeneration": ("moss_transcribe_diarize",),
    "MuseGlimmerForCausalLM": ("muse_glimmer",),
    "MuseGlimmerForConditionalGeneration": ("muse_glimmer",),
    "NemotronH_Nano_Omni_Reasoning_V3": _NEMOTRON,
    "NemotronH_Nano_VL_V2": _NEMOTRON,
    "NemotronH_Omni_Reasoning_V3": _NEMOTRON,
    "NemotronH_Super_Omni_Reasoning_V3": _NEMOTRON,
    "NemotronParseForConditionalGeneration": ("radio_tile",),
    "NVLM_D": ("intern_vit",),
    "OpenCUAForConditionalGeneration": ("qwen2_5_vl",),
    "OpenPanguVLForConditionalGeneration": ("openpangu_vl",),
    "OpenVLAForActionPrediction": ("openvla",),
    "OpsColQwen3Model": ("qwen3_vl",),
    "Ovis": ("ovis_siglip", "ovis_aimv2"),
    "Ovis2_5": ("ovis2_5",),
    "Ovis2_6_MoeForCausalLM": ("ovis2_5",),
    "Ovis2_6ForCausalLM": ("ovis2_5",),
    "PaddleOCRVLForConditionalGeneration": ("paddleocr",),
    "PaliGemmaForConditionalGeneration": ("siglip",),
    "Phi3VForCausalLM": ("clip",),
    "Phi4ForCausalLMV": ("lfm2_siglip2",),
    "Phi4MMForCausalLM": ("idefics2", "phi4mm_audio"),
    "PixtralForConditionalGeneration": ("pixtral",),
    "QianfanOCRForConditionalGeneration": ("intern_vit",),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_5_vl",),
    "Qwen2_5OmniForConditionalGeneration": ("qwen2_5_omni_audio", "qwen2_5_vl"),
    "Qwen2_5OmniModel": ("qwen2_5_omni_audio", "qwen2_5_vl"),
    "Qwen2AudioForConditionalGeneration": ("qwen2_audio",),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl",),
    "Qwen3_5ForConditionalGeneration": ("qwen3_vl",),
    "Qwen3_5MoeForConditionalGeneration": ("qwen3_vl",),
    "Qwen3ASRForcedAlignerForTokenClassification": ("qwen3_omni_audio",),
    "Qwen3ASRForConditionalGeneration": ("qwen3_omni_audio",),
    "Qwen3ASRRealtimeGeneration": ("qwen3_omni_audio",),
    "Qwen3OmniMoeForConditionalGeneration": ("qwen3_omni_audio", "qwen3_omni_vision"),
    "Qwen3VLForConditionalGeneration": ("qwen3_vl",),
    "Qwen3VLMoeForConditionalGeneration": ("qwen3_vl",),
    "Qwen3VLNemotronEmbedModel": ("qwen3_vl",),
    "Qwen4ExpForConditionalGeneration": ("qwen3_vl",),
    "RForConditionalGeneration": _LLAVA,
    "SiglipModel": ("siglip",),
    "SkyworkR1VChatModel": ("intern_vit",),
    "SmolVLMForConditionalGeneration": ("idefics2",),
    "Step3p7ForConditionalGeneration": ("step_vl",),
    "Step3VLForConditionalGeneration": ("step3_vl",),
    "StepVLForConditionalGeneration": ("step_vl",),
    "Terratorch": (),
    "TransformersMultiModalEmbeddingModel": (),
    "TransformersMultiModalForCausalLM": (),
    "TransformersMultiModalForSequenceClassification": (),
    "TransformersMultiModalMoEForCausalLM": (),
    "UltravoxModel": ("ultravox",),
    "UnlimitedOCRForCausalLM": ("deepencoder_sam", "deepclip"),
    "VibeVoiceAsrForConditionalGeneration": (),
    "VoxtralForConditionalGeneration": ("voxtral",),
    "VoxtralRealtimeGeneration": ("voxtral_realtime",),
    "WhisperForConditionalGeneration": ("whisper",),
}
"""Architecture -> the towers that it can build. Where there are none, `NO_TOWER` or the
catalogue's `EAGER` says why."""

NO_TOWER: Mapping[str, str] = dict.fromkeys(
    (
        "Emu3ForConditionalGeneration",
        "HunYuanVLForConditionalGeneration",
        "TransformersMultiModalEmbeddingModel",
        "TransformersMultiModalForCausalLM",
        "TransformersMultiModalForSequenceClassification",
        "TransformersMultiModalMoEForCausalLM",
        "VibeVoiceAsrForConditionalGeneration",
    ),
    "the encoder is the one that Transformers has for the checkpoint",
)
"""Architecture that is surveyed -> why no tower test stands for it."""

REMARKS: Mapping[str, str] = {
    "ClefOmniForJointSchema": "its vision tower is surveyed",
    "DeepseekV4ForConditionalGeneration": (
        "vLLM's class for CPU is a stub that raises NotImplementedError"
    ),
    "MiniCPMO": (
        "its vision tower is surveyed; the checkpoint of the tests takes no pictures"
    ),
    "MiniCPMV4_6ForConditionalGeneration": (
        "the attention that merges windows between two blocks has no tower test"
    ),
    "MiniCPMV4_7ForConditionalGeneration": (
        "the attention that merges windows between two blocks has no tower test"
    ),
    "Qwen3OmniMoeForConditionalGeneration": "its vision tower is surveyed",
}
"""Architecture -> what of its encoder is not compiled, or not tested."""

LACKS: Mapping[str, frozenset[str]] = {
    "0.31": frozenset(
        {
            "ClefOmniForJointSchema",
            "EmbeddingGemma2Model",
            "MiniCPMV4_7ForConditionalGeneration",
        }
    )
}
"""Release -> architectures of the census that vLLM does not have in that release."""

ADDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "0.33": {
        "Alpamayo2Super": ("qwen3_vl",),
        "ClefFlashForJointSchema": ("qwen3_vl",),
        "ColUltraVBertForRetrieval": ("siglip",),
        "D3ForSequenceClassification": ("qwen3_vl",),
        "MiniCPMOcrForConditionalGeneration": ("idefics2",),
        "ModernVBertModel": ("colmodernvbert",),
        "MuseSparkForConditionalGeneration": (),
        "RadioMBartPrefixForCausalLM": ("radio_dyn",),
        "Step5ForConditionalGeneration": ("step_vl",),
    }
}
"""Release -> architectures that are not in the census -> towers of their encoders, as
above. All are surveyed."""

DRAFT_MODELS = (
    "MiMoV2OmniMTPModel",
    "Exaone4_5_MTP",
    "Qwen3_5MTP",
    "Qwen3_5MoeMTP",
    "InternS2MobiusMTP",
)
"""Draft models whose class supports multimodal input. They have no encoder: they get
the embeddings of the model that they draft for. They are not registered."""
