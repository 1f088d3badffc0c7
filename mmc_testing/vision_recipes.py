# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models that see: whose parameters transformers' classes have."""

from dataclasses import replace
from typing import Any

from mmc_testing.writer import (
    ATTENTION,
    HIDDEN,
    LLAMA_TOKENS,
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    Ids,
    Recipe,
    text_sizes,
    vision_sizes,
)

NO_VIDEO = {"limit_mm_per_prompt": {"image": 2, "video": 0}}


# ---------------------------------------------------------------- LLaVA


def _llava_config(ids: Ids, tower: str) -> Any:
    from transformers import LlavaConfig

    clip = tower == "clip_vision_model"
    return LlavaConfig(
        vision_config={
            "model_type": tower,
            **vision_sizes(image_size=112, patch_size=14 if clip else 16),
            **({"projection_dim": 64} if clip else {"vision_use_head": False}),
        },
        text_config={"model_type": "llama", **text_sizes()},
        image_token_index=ids["<image>"],
        image_seq_length=64 if clip else 49,
        vision_feature_select_strategy="default" if clip else "full",
    )


def _llava_processor(tokenizer: Any, tower: str) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor, SiglipImageProcessor

    if tower == "clip_vision_model":
        return LlavaProcessor(
            CLIPImageProcessor(
                size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}
            ),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    return LlavaProcessor(
        SiglipImageProcessor(size={"height": 112, "width": 112}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="full",
    )


def _llava(title: str, tower: str) -> Recipe:
    return Recipe(
        title,
        "LlavaForConditionalGeneration",
        config=lambda ids: _llava_config(ids, tower),
        special_tokens=(*LLAMA_TOKENS, "<image>"),
        processor=lambda tokenizer: _llava_processor(tokenizer, tower),
        template="USER: {media}\n{text} ASSISTANT:",
        placeholder="<image>",
        renames={r"vision_tower\.(?!vision_model)": "vision_tower.vision_model."},
    )


# ---------------------------------------------------------------- Qwen

QWEN_VL_TOKENS = (
    *QWEN_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def _experts(config: Any) -> dict[str, tuple[int, ...]]:
    """Returns the experts' shapes as published, the other way round than transformers'.

    Its own table turns them only where the two shapes differ, and takes the wrong one.
    """
    text = config.text_config
    experts, inner = text.num_experts, text.moe_intermediate_size
    return {
        f"model.language_model.layers.{layer}.mlp.experts.{name}": shape
        for layer in range(text.num_hidden_layers)
        for name, shape in (
            ("gate_up_proj", (experts, HIDDEN, 2 * inner)),
            ("down_proj", (experts, inner, HIDDEN)),
        )
    }


def _qwen_vl_config(ids: Ids, name: str, text: Any, vision: Any) -> Any:
    import transformers

    return getattr(transformers, name)(
        text_config=text_sizes(bos_token_id=None, eos_token_id=ids["<|im_end|>"])
        | text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def _qwen_vl_processor(tokenizer: Any, name: str, patch: int) -> Any:
    import transformers

    video_class = "Qwen3VLVideoProcessor" if "3" in name else "Qwen2VLVideoProcessor"
    unit = (2 * patch) ** 2
    size = {"shortest_edge": 4 * unit, "longest_edge": 512 * unit}
    patches = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    return getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(size=size, **patches),
        video_processor=getattr(transformers, video_class)(size=size, **patches),
        tokenizer=tokenizer,
    )


def _qwen_vl(
    title: str, family: str, processor: str, patch: int, text: Any, vision: Any
) -> Recipe:
    return Recipe(
        title,
        f"{family}ForConditionalGeneration",
        config=lambda ids: _qwen_vl_config(ids, f"{family}Config", text, vision),
        special_tokens=QWEN_VL_TOKENS,
        processor=lambda tokenizer: _qwen_vl_processor(tokenizer, processor, patch),
        template=QWEN_TEMPLATE,
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        roles=QWEN_ROLES,
        tokenizer_class="Qwen2Tokenizer",
        engine_args=NO_VIDEO,
    )


QWEN3_VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_heads": 4,
    "patch_size": 16,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 144,
    "deepstack_visual_indexes": [1, 2],
}
QWEN3_ROPE = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    }
}


# ---------------------------------------------------------------- Mistral 3


def _mistral3_config(ids: Ids) -> Any:
    from transformers import Mistral3Config

    return Mistral3Config(
        vision_config={
            "model_type": "pixtral",
            **vision_sizes(image_size=560, patch_size=14, head_dim=16),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        text_config={"model_type": "mistral", **text_sizes()},
        image_token_index=ids["[IMG]"],
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def _mistral3_processor(tokenizer: Any) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor

    return PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 560}, patch_size=14),
        tokenizer,
        patch_size=14,
        spatial_merge_size=2,
    )


# ---------------------------------------------------------------- Gemma

GEMMA_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    # vLLM asks for these by name.
    "\n",
    "\n\n",
    "\n\n\n",
    "\n\n\n\n",
)
GEMMA_ROLES = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
GEMMA_TEMPLATE = (
    "<bos><start_of_turn>user\n{media}{text}<end_of_turn>\n<start_of_turn>model\n"
)
# The embeddings are the output layer as well: at the usual spread an answer would only
# repeat the last token.
GEMMA_SCALES = {ATTENTION: 2, r"embed_tokens\.weight$": 0.1}
GEMMA_NAMED = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}


def _gemma3_config(ids: Ids) -> Any:
    from transformers import Gemma3Config

    return Gemma3Config(
        text_config=text_sizes(
            tie_word_embeddings=True,
            query_pre_attn_scalar=32,
            sliding_window=512,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=vision_sizes(
            image_size=112, patch_size=14, vision_use_head=False
        ),
        mm_tokens_per_image=16,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
        tie_word_embeddings=True,
    )


def _gemma3_processor(tokenizer: Any) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    return Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 112, "width": 112}),
        tokenizer,
        image_seq_length=16,
    )


def _paligemma_config(ids: Ids) -> Any:
    from transformers import PaliGemmaConfig

    return PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            **text_sizes(tie_word_embeddings=True, num_image_tokens=64),
        },
        vision_config={
            "model_type": "siglip_vision_model",
            **vision_sizes(
                image_size=112,
                patch_size=14,
                projection_dim=HIDDEN,
                vision_use_head=False,
            ),
        },
        image_token_index=ids["<image>"],
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )


def _paligemma_processor(tokenizer: Any) -> Any:
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size={"height": 112, "width": 112})
    images.image_seq_length = 64
    return PaliGemmaProcessor(images, tokenizer)


def _gemma4_config(ids: Ids) -> Any:
    from transformers import Gemma4Config

    return Gemma4Config(
        text_config=text_sizes(
            tie_word_embeddings=True,
            global_head_dim=64,
            vocab_size_per_layer_input=384,
            hidden_size_per_layer_input=32,
            sliding_window=512,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=vision_sizes(
            num_key_value_heads=4,
            head_dim=16,
            patch_size=16,
            pooling_kernel_size=3,
            position_embedding_size=256,
            default_output_length=70,
        ),
        audio_config={
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            # The first is the published one. transformers takes it for the number of
            # mel bins, and vLLM's product on CPU reads past the end if it is another.
            "subsampling_conv_channels": [128, 8],
            "output_proj_dims": 96,
        },
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        boa_token_id=ids["<|audio>"],
        eoa_token_index=ids["<audio|>"],
        audio_token_id=ids["<|audio|>"],
    )


def _gemma4_processor(tokenizer: Any) -> Any:
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    return Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer,
        Gemma4VideoProcessor(max_soft_tokens=70),
        image_seq_length=70,
    )


def _widen_clips(weights: dict[str, Any], config: Any) -> None:
    """Lets the audio tower's clipped layers pass most of what they get."""
    for name, tensor in weights.items():
        if name.endswith(("put_min", "put_max")):
            tensor.mul_(-4 if name.endswith("_min") else 4)


def _mend_onednn() -> None:
    from vllm import _custom_ops

    product = _custom_ops.onednn_mm

    def with_adjacent_values(handler: Any, x: Any, bias: Any) -> Any:
        return product(handler, x.contiguous(), bias)

    _custom_ops.onednn_mm = with_adjacent_values


GEMMA4 = Recipe(
    "Gemma 4",
    "Gemma4ForConditionalGeneration",
    config=_gemma4_config,
    special_tokens=(
        *GEMMA_TOKENS,
        "<|image>",
        "<image|>",
        "<|image|>",
        "<|video|>",
        "<|audio>",
        "<audio|>",
        "<|audio|>",
    ),
    processor=_gemma4_processor,
    template=GEMMA_TEMPLATE,
    placeholder="<|image|>",
    roles=GEMMA_ROLES,
    named_tokens={
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    },
    mend=_widen_clips,
    # Embeddings of tokens, layer by layer, are the third thing to weaken.
    scales={ATTENTION: 2, r"embed_tokens(_per_layer)?\.weight$": 0.3},
    engine_args={"limit_mm_per_prompt": {"image": 2, "video": 0, "audio": 2}},
)


# ---------------------------------------------------------------- LLaVA-OneVision


def _onevision_config(ids: Ids) -> Any:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **vision_sizes(image_size=112, patch_size=14, vision_use_head=False),
        },
        text_config={"model_type": "qwen2", **text_sizes()},
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=ONEVISION_GRID,
        vision_aspect_ratio="anyres_max_9",
    )


ONEVISION_GRID = [[112 * row, 112 * column] for row in (1, 2) for column in (1, 2, 3)]


def _onevision_processor(tokenizer: Any) -> Any:
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    size = {"height": 112, "width": 112}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=ONEVISION_GRID),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


# ---------------------------------------------------------------- InternVL, Idefics 3


def _internvl_config(ids: Ids) -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            **vision_sizes(image_size=[112, 112], patch_size=[14, 14]),
            "attention_bias": True,
        },
        text_config={"model_type": "qwen2", **text_sizes()},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=16,
        tie_word_embeddings=False,
    )


def _internvl_processor(tokenizer: Any) -> Any:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    size = {"height": 112, "width": 112}
    return InternVLProcessor(
        GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=6
        ),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=16,
    )


def _idefics3_config(ids: Ids) -> Any:
    from transformers import Idefics3Config

    return Idefics3Config(
        vision_config=vision_sizes(image_size=112, patch_size=14),
        text_config={"model_type": "llama", **text_sizes(pad_token_id=ids["<pad>"])},
        image_token_id=ids["<image>"],
        pad_token_id=ids["<pad>"],
        scale_factor=2,
    )


def _idefics3_processor(tokenizer: Any) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    return Idefics3Processor(
        Idefics3ImageProcessor(
            size={"longest_edge": 336}, max_image_size={"longest_edge": 112}
        ),
        tokenizer,
        image_seq_len=16,
    )


# ---------------------------------------------------------------- GLM


def _glm4v_config(ids: Ids) -> Any:
    from transformers import Glm4vConfig

    return Glm4vConfig(
        text_config=text_sizes(
            pad_token_id=ids["<|endoftext|>"],
            eos_token_id=[ids["<|endoftext|>"], ids["<|user|>"]],
            # Half of a head of 32 turns: 8 pairs for time, height and width.
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3],
            },
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "num_heads": 4,
            "image_size": 112,
            "patch_size": 14,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 172,
        },
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )


def _glm4v_processor(tokenizer: Any) -> Any:
    from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 512}
    return Glm4vProcessor(
        Glm4vImageProcessor(size=size), tokenizer, Glm4vVideoProcessor(size=size)
    )


# ---------------------------------------------------------------- all

RECIPES: dict[str, Recipe] = {
    "llava_clip": _llava("LLaVA (CLIP)", "clip_vision_model"),
    "llava_siglip": _llava("LLaVA (SigLIP)", "siglip_vision_model"),
    "qwen2_vl": _qwen_vl(
        "Qwen2-VL",
        "Qwen2VL",
        "Qwen2VLProcessor",
        14,
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],
            }
        },
        {"depth": 4, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 4},
    ),
    "qwen3_vl": _qwen_vl(
        "Qwen3-VL", "Qwen3VL", "Qwen3VLProcessor", 16, QWEN3_ROPE, QWEN3_VISION
    ),
    "qwen3_vl_moe": replace(
        _qwen_vl(
            "Qwen3-VL MoE",
            "Qwen3VLMoe",
            "Qwen3VLProcessor",
            16,
            QWEN3_ROPE
            | {
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 96,
                "norm_topk_prob": True,
            },
            QWEN3_VISION,
        ),
        shapes=_experts,
        # Of three dimensions; the usual spread takes two of them for the fan-in.
        scales={ATTENTION: 2, r"experts\.\w+$": 11},
    ),
    "mistral3": Recipe(
        "Mistral 3 (Pixtral)",
        "Mistral3ForConditionalGeneration",
        config=_mistral3_config,
        special_tokens=(
            *LLAMA_TOKENS,
            "[INST]",
            "[/INST]",
            "[IMG]",
            "[IMG_BREAK]",
            "[IMG_END]",
        ),
        processor=_mistral3_processor,
        template="<s>[INST]{media}{text}[/INST]",
        placeholder="[IMG]",
    ),
    "gemma3": Recipe(
        "Gemma 3",
        "Gemma3ForConditionalGeneration",
        config=_gemma3_config,
        special_tokens=(*GEMMA_TOKENS, *GEMMA_NAMED.values()),
        processor=_gemma3_processor,
        template=GEMMA_TEMPLATE,
        placeholder="<start_of_image>",
        roles=GEMMA_ROLES,
        scales=GEMMA_SCALES,
        named_tokens=GEMMA_NAMED,
        renames={r"vision_tower\.(?!vision_model)": "vision_tower.vision_model."},
    ),
    "paligemma": Recipe(
        "PaliGemma",
        "PaliGemmaForConditionalGeneration",
        config=_paligemma_config,
        special_tokens=(*GEMMA_TOKENS, "<image>"),
        processor=_paligemma_processor,
        template="{media}{text}",
        placeholder="",
        roles=GEMMA_ROLES,
        scales=GEMMA_SCALES,
        named_tokens={"image_token": "<image>"},
        renames={r"vision_tower\.(?!vision_model)": "vision_tower.vision_model."},
        samples=([(224, 224)], [(448, 336)], [(504, 588)], [(280, 130)]),
        engine_args={"limit_mm_per_prompt": {"image": 1}},
    ),
    "gemma4": GEMMA4,
    "gemma4_audio": replace(
        GEMMA4,
        title="Gemma 4, hearing",
        modality="audio",
        placeholder="<|audio|>",
        samples=([0.3], [3.0], [12.5], [5.0, 0.7]),
        text="What is said?",
        cpu_fault=(
            "A convolution's output reaches vLLM's oneDNN product transposed, which "
            "takes rows of adjacent values only."
        ),
        mend_stock=_mend_onednn,
    ),
    "llava_onevision": Recipe(
        "LLaVA-OneVision",
        "LlavaOnevisionForConditionalGeneration",
        config=_onevision_config,
        special_tokens=(*QWEN_TOKENS, "<image>", "<video>"),
        processor=_onevision_processor,
        template=QWEN_TEMPLATE,
        placeholder="<image>",
        roles=QWEN_ROLES,
        renames={r"vision_tower\.(?!vision_model)": "vision_tower.vision_model."},
        engine_args=NO_VIDEO | {"max_model_len": 4096},
    ),
    "internvl": Recipe(
        "InternVL 3",
        "InternVLForConditionalGeneration",
        config=_internvl_config,
        special_tokens=(*QWEN_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        processor=_internvl_processor,
        template=QWEN_TEMPLATE,
        placeholder="<IMG_CONTEXT>",
        roles=QWEN_ROLES,
        named_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        engine_args=NO_VIDEO,
    ),
    "idefics3": Recipe(
        "Idefics 3",
        "Idefics3ForConditionalGeneration",
        config=_idefics3_config,
        special_tokens=(
            *LLAMA_TOKENS,
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
        ),
        processor=_idefics3_processor,
        template="<s>User:{media}{text}<end_of_utterance>\nAssistant:",
        placeholder="<image>",
    ),
    "glm4_1v": Recipe(
        "GLM-4.1V",
        "Glm4vForConditionalGeneration",
        config=_glm4v_config,
        special_tokens=(
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|user|>",
            "<|assistant|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
            "<|image|>",
            "<|video|>",
        ),
        processor=_glm4v_processor,
        template="[gMASK]<sop><|user|>\n{media}{text}<|assistant|>\n",
        placeholder="<|begin_of_image|><|image|><|end_of_image|>",
        roles={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        engine_args=NO_VIDEO,
    ),
}
