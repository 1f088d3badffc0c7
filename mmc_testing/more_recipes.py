# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models whose processors or towers need timm, num2words or kaldi.

The extra `dev` of pyproject.toml has these packages.
"""

import functools
from typing import Any

from mmc_testing.gemma_recipes import GEMMA_ROLES, GEMMA_TEMPLATE, GEMMA_TOKENS
from mmc_testing.vision_recipes import idefics3_config
from mmc_testing.writer import (
    ATTENTION,
    HIDDEN,
    LLAMA_TOKENS,
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    VISION_HIDDEN,
    Ids,
    Recipe,
    Shapes,
    linear,
    prefixed,
    published_shapes,
    text_sizes,
)


def _shrink(name: str, **sizes: Any) -> None:
    """Makes a model that vLLM asks timm for by name as small as the others here."""
    from timm.models import _registry

    made = _registry._model_entrypoints[name]
    _registry._model_entrypoints[name] = functools.partial(made, **sizes)


# ---------------------------------------------------------------- SmolVLM


def _smolvlm_config(ids: Ids) -> Any:
    return idefics3_config(ids, "SmolVLMConfig")


def _smolvlm_processor(tokenizer: Any) -> Any:
    from transformers import (
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    return SmolVLMProcessor(
        SmolVLMImageProcessor(
            size={"longest_edge": 336}, max_image_size={"longest_edge": 112}
        ),
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=16,
    )


# ---------------------------------------------------------------- Gemma 3n


MOBILENET = [
    ["er_r1_k3_s2_e4_c128"],
    ["uir_r1_a3_k5_s2_e6_c256", "uir_r1_a5_k0_s1_e4_c256"],
    [
        "uir_r1_a5_k5_s2_e6_c640",
        *["mqa_r1_k3_h12_v2_s1_d64_c640", "uir_r1_a0_k0_s1_e2_c640"] * 3,
    ],
    [
        "uir_r1_a5_k5_s2_e6_c1280",
        *["mqa_r1_k3_h16_s1_d96_c1280", "uir_r1_a0_k0_s1_e2_c1280"] * 3,
    ],
]
"""The stages of Gemma 3n's MobileNetV5, in timm's words: all its kinds of blocks, 17 of
84 blocks."""


def mobilenet_args() -> dict[str, Any]:
    """Returns what timm makes a small MobileNetV5 from, a tenth as wide."""
    from timm.models._efficientnet_builder import decode_arch_def

    return {"channel_multiplier": 0.1, "block_args": decode_arch_def(MOBILENET)}


def _shrink_mobilenet() -> None:
    _shrink("mobilenetv5_300m_enc", **mobilenet_args())


def _gemma3n_config(ids: Ids) -> Any:
    from transformers import Gemma3nConfig

    _shrink_mobilenet()
    return Gemma3nConfig(
        text_config=text_sizes(
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            tie_word_embeddings=True,
            sliding_window=512,
            laurel_rank=16,
            vocab_size_per_layer_input=384,
            hidden_size_per_layer_input=32,
        ),
        vision_config={"vocab_size": 64, "vocab_offset": 256},
        # Token 383, the last one, is what short audio is padded with.
        audio_config={
            "hidden_size": 64,
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 3,
            "sscp_conv_channel_size": [16, 8],
            "vocab_size": 64,
            "vocab_offset": 320,
        },
        boi_token_id=ids["<start_of_image>"],
        eoi_token_id=ids["<end_of_image>"],
        image_token_id=ids["<image_soft_token>"],
        boa_token_id=ids["<start_of_audio>"],
        eoa_token_id=ids["<end_of_audio>"],
        audio_token_id=ids["<audio_soft_token>"],
    )


def _gemma3n_processor(tokenizer: Any) -> Any:
    from transformers import (
        Gemma3nAudioFeatureExtractor,
        Gemma3nProcessor,
        SiglipImageProcessor,
    )

    return Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        SiglipImageProcessor(size={"height": 768, "width": 768}, do_normalize=False),
        tokenizer,
    )


def _fill_silent_rows(weights: dict[str, Any], config: Any) -> None:
    """Lets each token have an embedding: AltUp divides by its magnitude."""
    import torch

    for name, tensor in weights.items():
        if name.endswith("embed_tokens.weight"):
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            tensor += 0.01 * noise * ~tensor.any(-1, keepdim=True)


GEMMA3N = Recipe(
    "Gemma 3n",
    "Gemma3nForConditionalGeneration",
    config=_gemma3n_config,
    special_tokens=(
        *GEMMA_TOKENS,
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        "<start_of_audio>",
        "<end_of_audio>",
        "<audio_soft_token>",
    ),
    processor=_gemma3n_processor,
    template=GEMMA_TEMPLATE,
    placeholder="<image_soft_token>",
    roles=GEMMA_ROLES,
    named_tokens={
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
        "audio_token": "<audio_soft_token>",
    },
    mend=_fill_silent_rows,
    mend_stock=_shrink_mobilenet,  # no fault: vLLM has no setting for a small tower
    scales={
        ATTENTION: 2,
        r"embed_tokens\.weight$": 0.05,
        r"embed_tokens_per_layer\.weight$": 0.3,
    },
    engine_args={"limit_mm_per_prompt": {"image": 2, "audio": 0}},
)


# ---------------------------------------------------------------- DeepSeek-VL2


RESOLUTIONS = [[112, 112], [112, 224], [224, 112], [224, 224]]


def _deepseek_vl2_config(ids: Ids) -> dict[str, Any]:
    # A dict: vLLM's config class saves the text model's part under another name.
    return {
        "model_type": "deepseek_vl_v2",
        "tile_tag": "2D",
        "candidate_resolutions": RESOLUTIONS,
        "vision_config": {"image_size": 112, "patch_size": 14},
        "projector_config": {"input_dim": VISION_HIDDEN, "n_embed": HIDDEN},
        # Attention as in DeepSeek-VL2-Tiny, which has no latents.
        "language_config": text_sizes(
            num_key_value_heads=4,
            qk_nope_head_dim=0,
            qk_rope_head_dim=0,
            v_head_dim=0,
            kv_lora_rank=None,
            q_lora_rank=None,
            first_k_dense_replace=2,
            n_routed_experts=4,
        ),
    }


def _deepseek_vl2_shapes(config: Any) -> Shapes:
    import timm
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    text = LlamaConfig(**text_sizes(num_key_value_heads=4))
    _shrink_siglip()
    with torch.device("meta"):
        tower = timm.create_model(_SIGLIP, num_classes=0)
    state = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    return {
        **prefixed("language.", published_shapes(LlamaForCausalLM, text)),
        **prefixed("vision.", state),
        **linear("projector.layers.0", 4 * VISION_HIDDEN, HIDDEN),
        **linear("projector.layers.2", HIDDEN, HIDDEN),
        "image_newline": (HIDDEN,),
        "view_seperator": (HIDDEN,),
    }


_SIGLIP = "vit_so400m_patch14_siglip_384"


def _shrink_siglip() -> None:
    _shrink(
        _SIGLIP,
        img_size=112,
        embed_dim=VISION_HIDDEN,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
    )


# ---------------------------------------------------------------- FireRedASR2


def _fireredasr2_config(ids: Ids) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        **text_sizes(),
        encoder_downsample_rate=2,
        audio_encoder_conf={
            "idim": 80,
            "n_layers_enc": 3,
            "n_head": 4,
            "d_model": VISION_HIDDEN,
            "kernel_size": 9,
            "pe_maxlen": 1000,
        },
    )


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _fireredasr2_shapes(config: Any) -> Shapes:
    from transformers import Qwen2ForCausalLM

    width = VISION_HIDDEN
    tower: dict[str, tuple[int, ...]] = {
        "input_preprocessor.conv.0.weight": (32, 1, 3, 3),
        "input_preprocessor.conv.0.bias": (32,),
        "input_preprocessor.conv.2.weight": (32, 32, 3, 3),
        "input_preprocessor.conv.2.bias": (32,),
        **linear("input_preprocessor.out", 32 * 19, width),
    }
    for layer in range(config.audio_encoder_conf["n_layers_enc"]):
        block: dict[str, tuple[int, ...]] = {}
        for ffn in ("ffn1", "ffn2"):
            block |= _norm(f"{ffn}.net.0", width)
            block |= linear(f"{ffn}.net.1", width, 4 * width)
            block |= linear(f"{ffn}.net.4", 4 * width, width)
        for part in ("q", "k", "v"):
            block |= _norm(f"mhsa.layer_norm_{part}", width)
            block[f"mhsa.w_{part}s.weight"] = (width, width)
        block |= {
            "mhsa.fc.weight": (width, width),
            "mhsa.linear_pos.weight": (width, width),
            "mhsa.pos_bias_u": (4, width // 4),
            "mhsa.pos_bias_v": (4, width // 4),
            **_norm("conv.pre_layer_norm", width),
            "conv.pointwise_conv1.weight": (4 * width, width, 1),
            "conv.depthwise_conv.weight": (2 * width, 1, 9),
            **_norm("conv.batch_norm", 2 * width),
            "conv.pointwise_conv2.weight": (width, 2 * width, 1),
            **_norm("layer_norm", width),
        }
        tower |= prefixed(f"layer_stack.{layer}.", block)
    return {
        **prefixed("llm.", published_shapes(Qwen2ForCausalLM, config)),
        **prefixed("encoder.", tower),
        **linear("encoder_projector.linear1", 2 * width, HIDDEN),
        **linear("encoder_projector.linear2", HIDDEN, HIDDEN),
    }


# ---------------------------------------------------------------- all

RECIPES: dict[str, Recipe] = {
    "smolvlm": Recipe(
        "SmolVLM",
        "SmolVLMForConditionalGeneration",
        config=_smolvlm_config,
        special_tokens=(
            *LLAMA_TOKENS,
            "<fake_token_around_image>",
            "<image>",
            "<end_of_utterance>",
            "<global-img>",
            *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
        ),
        processor=_smolvlm_processor,
        template="<s>User:{media}{text}<end_of_utterance>\nAssistant:",
        placeholder="<image>",
    ),
    "gemma3n": GEMMA3N,
    "deepseek_vl2": Recipe(
        "DeepSeek-VL2",
        "DeepseekVLV2ForCausalLM",
        config=_deepseek_vl2_config,
        hf_class="",
        shapes=_deepseek_vl2_shapes,
        special_tokens=(
            *LLAMA_TOKENS,
            "<image>",
            "<|ref|>",
            "<|/ref|>",
            "<|det|>",
            "<|/det|>",
            "<|grounding|>",
            "<|User|>",
            "<|Assistant|>",
        ),
        template="<|User|>: {media}\n{text}\n\n<|Assistant|>:",
        placeholder="<image>",
        settings={
            "processor_config.json": {
                "processor_class": "DeepseekVLV2Processor",
                "candidate_resolutions": RESOLUTIONS,
                "patch_size": 14,
                "downsample_ratio": 2,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "pad_token": "<pad>",
            },
        },
        mend_stock=_shrink_siglip,  # no fault: vLLM has no setting for a small tower
    ),
    "fireredasr2": Recipe(
        "FireRedASR2",
        "FireRedASR2ForConditionalGeneration",
        config=_fireredasr2_config,
        hf_class="",
        shapes=_fireredasr2_shapes,
        special_tokens=(*QWEN_TOKENS, "<|AUDIO|>"),
        template=QWEN_TEMPLATE,
        placeholder="<|AUDIO|>",
        roles=QWEN_ROLES,
        settings={
            "processor_config.json": {"processor_class": "FireRedASR2Processor"},
            "preprocessor_config.json": {
                "feature_extractor_type": "FireRedASR2FeatureExtractor",
                "means": [10.0] * 80,
                "inverse_std_variences": [0.25] * 80,
            },
        },
        modality="audio",
        samples=([0.3], [3.0], [12.5], [29.0]),
        text="Please transcribe this audio",
        engine_args={"limit_mm_per_prompt": {"audio": 1}},
    ),
}
