# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of Gemma's relatives, which see, and one of which hears."""

from dataclasses import replace
from typing import Any

from mmc_testing.writer import (
    ATTENTION,
    HIDDEN,
    Ids,
    Recipe,
    text_sizes,
    vision_sizes,
)

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


RECIPES: dict[str, Recipe] = {
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
}
