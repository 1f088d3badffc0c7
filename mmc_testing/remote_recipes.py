# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Recipes of models that are published with code, here with stand-ins for it.

Such an engine needs `trust_remote_code`. The names of the parameters are those of the
published files; transformers has a class for the text model at most.
"""

from dataclasses import replace
from typing import Any

from mmc_testing.writer import (
    HIDDEN,
    QWEN_ROLES,
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    VISION_HIDDEN,
    Ids,
    Recipe,
    linear,
    prefixed,
    published_shapes,
    remote_code,
    resampler_shapes,
    text_sizes,
    vision_sizes,
)

INNER = 172  # of a vision block's two linear layers
Shapes = dict[str, tuple[int, ...]]


# ---------------------------------------------------------------- InternVL, own format


def _internvl_config(ids: Ids) -> dict[str, Any]:
    return {
        "model_type": "internvl_chat",
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "vision_config": {
            **vision_sizes(image_size=112, patch_size=14),
            "hidden_act": "gelu",
            "initializer_factor": 1.0,
            "layer_norm_eps": 1e-6,
            "norm_type": "layer_norm",
            "qk_normalization": False,
            "qkv_bias": True,
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **text_sizes(),
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 112,
        "max_dynamic_patch": 6,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "use_thumbnail": True,
        "tie_word_embeddings": False,
    }


def _internvl_shapes(config: dict[str, Any]) -> Shapes:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    text = Qwen2Config(**config["llm_config"])
    width = VISION_HIDDEN
    found = prefixed("language_model.", published_shapes(Qwen2ForCausalLM, text))
    found |= {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, 65, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        **linear("mlp1.1", 4 * width, HIDDEN),
        **linear("mlp1.3", HIDDEN, HIDDEN),
    }
    for layer in range(config["vision_config"]["num_hidden_layers"]):
        block = f"vision_model.encoder.layers.{layer}."
        vectors = ("ls1", "ls2", "norm1.weight", "norm1.bias", "norm2.weight")
        found |= {block + name: (width,) for name in (*vectors, "norm2.bias")}
        found |= linear(block + "attn.qkv", width, 3 * width)
        found |= linear(block + "attn.proj", width, width)
        found |= linear(block + "mlp.fc1", width, INNER)
        found |= linear(block + "mlp.fc2", INNER, width)
    return found


# ---------------------------------------------------------------- MiniCPM-V 2.6


def _minicpmv_config(ids: Ids) -> dict[str, Any]:
    return {
        "model_type": "minicpmv",
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMVConfig"},
        "version": 2.6,
        **text_sizes(bos_token_id=ids["<|im_start|>"], eos_token_id=ids["<|im_end|>"]),
        "vision_config": vision_sizes(image_size=560, patch_size=14),
        "image_size": 112,
        "max_slice_num": 4,
        "query_num": 16,
        "drop_vision_last_layer": False,
    }


def _minicpmv_shapes(config: dict[str, Any]) -> Shapes:
    from transformers import (
        Qwen2Config,
        Qwen2ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    text = Qwen2Config(**text_sizes())
    vision = SiglipVisionConfig(**config["vision_config"], vision_use_head=False)
    tower = published_shapes(SiglipVisionModel, vision)
    tower = {name.removeprefix("vision_model."): tower[name] for name in tower}
    return {
        **prefixed("llm.", published_shapes(Qwen2ForCausalLM, text)),
        **prefixed("vpm.", tower),
        **resampler_shapes(16),
    }


def _mend_capturing() -> None:
    import torch

    torch.cuda.is_current_stream_capturing = lambda: False


# ---------------------------------------------------------------- Phi-4-multimodal

PHI4_VISION = vision_sizes(image_size=448, patch_size=14)
PHI4_IDS = {"<|endoftext10|>": 270, "<|endoftext11|>": 271}
"""Of what takes the place of a picture and of a clip. The published vocabulary has them
at 200010 and 200011."""


def _phi4mm_config(ids: Ids) -> dict[str, Any]:
    conformer = {
        "input_size": 80,
        "chunk_size": -1,
        "left_chunk": 18,
        "num_lang": None,
        "attention_dim": VISION_HIDDEN,
        "attention_heads": 4,
        "linear_units": INNER,
        "num_blocks": 3,
        "dropout_rate": 0.0,
        "causal": True,
        "activation": "swish",
        "attention_group_size": 1,
        "bias_in_glu": True,
        "conv_activation": "swish",
        "conv_glu_type": "swish",
        "ext_pw_kernel_size": 1,
        "ext_pw_out_channel": VISION_HIDDEN,
        "depthwise_seperable_out_channel": VISION_HIDDEN,
        "depthwise_multiplier": 1,
        "kernel_size": 3,
        "batch_norm": False,
        "chunk_se": 0,
        "cnn_out": -1,
        "cnn_layer_norm": False,
        "input_layer": "nemo_conv",
        "time_reduction": 8,
        "nemo_conv_settings": {"conv_channels": VISION_HIDDEN},
        "relative_attention_bias_args": {"type": "t5", "t5_bias_max_distance": 500},
        "encoder_embedding_config": {"input_size": 80},
    }
    return {
        "model_type": "phi4mm",
        "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
        **text_sizes(
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        "audio_processor": {"name": "cascades", "config": conformer},
        "embd_layer": {
            "embedding_cls": "image_audio",
            "audio_embd_layer": {
                "compression_rate": 8,
                "downsample_rate": 1,
                "embedding_cls": "audio",
                "projection_cls": "mlp",
                "use_conv_downsample": False,
                "use_qformer": False,
            },
        },
    }


def _phi4mm_shapes(config: dict[str, Any]) -> Shapes:
    import torch
    from transformers import (
        Phi3Config,
        Phi3ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
    )
    from vllm.model_executor.models.phi4mm_audio import ConformerEncoder

    text = published_shapes(
        Phi3ForCausalLM, Phi3Config(**text_sizes(pad_token_id=config["pad_token_id"]))
    )
    vision = SiglipVisionConfig(**PHI4_VISION, vision_use_head=False)
    tower = published_shapes(SiglipVisionModel, vision)
    tower = {name.removeprefix("vision_model."): tower[name] for name in tower}
    with torch.device("meta"):
        ears = ConformerEncoder(**config["audio_processor"]["config"])
    width = VISION_HIDDEN
    image = {
        **prefixed("img_processor.", tower),
        "glb_GN": (1, 1, width),
        "sub_GN": (1, 1, 1, width),
        **linear("img_projection.0", width, HIDDEN),
        **linear("img_projection.2", HIDDEN, HIDDEN),
    }
    audio = prefixed("encoder.", {n: t.shape for n, t in ears.state_dict().items()})
    for mode in ("speech", "vision"):
        audio |= linear(f"audio_projection.{mode}.0", width, HIDDEN)
        audio |= linear(f"audio_projection.{mode}.2", HIDDEN, HIDDEN)
    return {
        **text,
        **prefixed("model.embed_tokens_extend.image_embed.", image),
        **prefixed("model.embed_tokens_extend.audio_embed.", audio),
    }


def _shrink_phi4mm() -> None:
    """vLLM has its sizes and its placeholders in the code, for one checkpoint."""
    from transformers import SiglipVisionConfig
    from vllm.model_executor.models import phi4mm

    picture, clip = PHI4_IDS.values()
    phi4mm._IMAGE_PLACEHOLDER_TOKEN_ID = picture
    phi4mm._AUDIO_PLACEHOLDER_TOKEN_ID = clip

    def vision_model(layer_idx: int = -1) -> Any:
        config = SiglipVisionConfig(**PHI4_VISION)
        return phi4mm.Idefics2VisionTransformer(
            config=config,
            require_post_norm=False,
            num_hidden_layers_override=config.num_hidden_layers + layer_idx + 1,
        )

    phi4mm.get_navit_vision_model = vision_model


PHI4MM = Recipe(
    "Phi-4-multimodal",
    "Phi4MMForCausalLM",
    config=_phi4mm_config,
    hf_class="",
    shapes=_phi4mm_shapes,
    renames={
        r"^(model\.layers\..*(qkv|o|gate_up|down)_proj)\.": r"\1.base_layer.",
    },
    special_tokens=(
        "<|endoftext|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        "<|image_1|>",
        "<|image_2|>",
        "<|audio_1|>",
        "<|audio_2|>",
    ),
    template="<|user|>{media}{text}<|end|><|assistant|>",
    placeholder="<|image_{i}|>",
    roles={"eos_token": "<|end|>", "pad_token": "<|endoftext|>"},
    scales={r"qkv_proj\.base_layer\.weight$": 2},
    files=remote_code("configuration_phi4mm.py", "processing_phi4mm.py"),
    settings={
        "processor_config.json": {
            "processor_class": "Phi4MMProcessor",
            "auto_map": {"AutoProcessor": "processing_phi4mm.Phi4MMProcessor"},
        },
    },
    mend_stock=_shrink_phi4mm,  # no fault: vLLM has no setting for a small one
    engine_args={
        "trust_remote_code": True,
        "limit_mm_per_prompt": {"image": 2, "audio": 0},
    },
)

# ---------------------------------------------------------------- Kimi-VL


def _kimi_vl_config(ids: Ids) -> Any:
    from vllm.transformers_utils.configs.kimi_vl import KimiVLConfig

    return KimiVLConfig(
        vision_config={
            **vision_sizes(patch_size=14),
            "init_pos_emb_height": 16,
            "init_pos_emb_width": 16,
            "merge_kernel_size": [2, 2],
        },
        text_config={
            **text_sizes(num_key_value_heads=4),
            # The sizes of a key are the published ones: the kernel on CPU has no other.
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "head_dim": 64,
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
        },
        media_placeholder_token_id=ids["<|media_pad|>"],
        pad_token_id=ids["[PAD]"],
    )


def _kimi_vl_shapes(config: Any) -> Shapes:
    from transformers import DeepseekV2ForCausalLM

    width, layers = VISION_HIDDEN, config.vision_config.num_hidden_layers
    text = published_shapes(DeepseekV2ForCausalLM, config.text_config)
    found = prefixed("language_model.", text)
    tower: Shapes = {
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "patch_embed.pos_emb.weight": (16, 16, width),
        "encoder.final_layernorm.weight": (width,),
        "encoder.final_layernorm.bias": (width,),
    }
    for layer in range(layers):
        block = f"encoder.blocks.{layer}."
        for norm in ("norm0", "norm1"):
            tower |= {f"{block}{norm}.{end}": (width,) for end in ("weight", "bias")}
        tower |= linear(block + "wqkv", width, 3 * width)
        tower |= linear(block + "wo", width, width)
        tower |= linear(block + "mlp.fc0", width, INNER)
        tower |= linear(block + "mlp.fc1", INNER, width)
    projector: Shapes = {
        "pre_norm.weight": (width,),
        "pre_norm.bias": (width,),
        **linear("linear_1", 4 * width, 4 * width),
        **linear("linear_2", 4 * width, HIDDEN),
    }
    return {
        **found,
        **prefixed("vision_tower.", tower),
        **prefixed("multi_modal_projector.", projector),
    }


# ---------------------------------------------------------------- Nemotron, hearing


def _nemotron_config(ids: Ids) -> dict[str, Any]:
    return {
        "model_type": "NemotronH_Nano_VL_V2",
        "auto_map": {"AutoConfig": "configuration_nemotron_vl.NemotronVLConfig"},
        "llm_config": {
            "architectures": ["NemotronHForCausalLM"],
            "model_type": "nemotron_h",
            **text_sizes(num_hidden_layers=4),
            # No Mamba: vLLM's fails on CPU with prompts of some lengths.
            "layers_block_type": ["attention", "mlp", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 64,
            "n_groups": 2,
            "ssm_state_size": 16,
            "dtype": "bfloat16",
        },
        # There is no smaller tower. No picture is taken, so it has no weights here.
        "vision_config": {
            "args": {"model": "vit_small_patch16_224", "teachers": []},
            "patch_size": 16,
        },
        "sound_config": {
            **vision_sizes(hidden_act="silu"),
            "convolution_bias": False,
            "conv_kernel_size": 9,
            "num_mel_bins": 128,
            "subsampling_factor": 8,
            "subsampling_conv_channels": 32,
            "subsampling_conv_kernel_size": 3,
            "subsampling_conv_stride": 2,
            "sampling_rate": 16000,
            "projection_hidden_size": 192,
            "projection_bias": False,
        },
        "downsample_ratio": 0.5,
        "force_image_size": 128,
        "patch_size": 16,
        "vit_hidden_size": 384,
        "projector_hidden_size": 192,
        "image_tag_type": "internvl",
        "norm_mean": [0.5, 0.5, 0.5],
        "norm_std": [0.5, 0.5, 0.5],
        "ps_version": "v2",
        "template": "nemotron5h-aligned-sft",
        "use_thumbnail": True,
    }


def _nemotron_shapes(config: dict[str, Any]) -> Shapes:
    from transformers import (
        NemotronHConfig,
        NemotronHForCausalLM,
        ParakeetEncoder,
        ParakeetEncoderConfig,
    )

    text = NemotronHConfig(**config["llm_config"])
    encoder = ParakeetEncoderConfig(
        **config["sound_config"], scale_input=False, attention_bias=False
    )
    return {
        **prefixed("language_model.", published_shapes(NemotronHForCausalLM, text)),
        **prefixed(
            "sound_encoder.encoder.", published_shapes(ParakeetEncoder, encoder)
        ),
        "sound_projection.norm.weight": (VISION_HIDDEN,),
        "sound_projection.linear1.weight": (192, VISION_HIDDEN),
        "sound_projection.linear2.weight": (HIDDEN, 192),
        "mlp1.0.weight": (4 * 384,),
        "mlp1.1.weight": (192, 4 * 384),
        "mlp1.3.weight": (HIDDEN, 192),
    }


RECIPES: dict[str, Recipe] = {
    "phi4mm": PHI4MM,
    "phi4mm_audio": replace(
        PHI4MM,
        title="Phi-4-multimodal, hearing",
        modality="audio",
        placeholder="<|audio_{i}|>",
        samples=([0.3], [3.0], [12.5], [5.0, 0.7]),
        text="Transcribe the audio clip into text.",
        engine_args={
            "trust_remote_code": True,
            "limit_mm_per_prompt": {"image": 0, "audio": 2},
        },
    ),
    "internvl_chat": Recipe(
        "InternVL 3, own format",
        "InternVLChatModel",
        config=_internvl_config,
        hf_class="",
        shapes=_internvl_shapes,
        special_tokens=(*QWEN_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>"),
        template=QWEN_TEMPLATE,
        placeholder="<image>\n",
        roles=QWEN_ROLES,
        files=remote_code("configuration_internvl_chat.py"),
        engine_args={"limit_mm_per_prompt": {"image": 2}, "trust_remote_code": True},
    ),
    "minicpmv": Recipe(
        "MiniCPM-V 2.6",
        "MiniCPMV",
        config=_minicpmv_config,
        hf_class="",
        shapes=_minicpmv_shapes,
        special_tokens=(
            *QWEN_TOKENS,
            "<unk>",
            "<image>",
            "</image>",
            "<slice>",
            "</slice>",
            "<image_id>",
            "</image_id>",
        ),
        template=QWEN_TEMPLATE,
        placeholder="(<image>./</image>)",
        roles=QWEN_ROLES | {"bos_token": "<|im_start|>", "unk_token": "<unk>"},
        named_tokens={"im_start": "<image>", "im_end": "</image>"},
        files=remote_code("configuration_minicpm.py", "image_processing_minicpmv.py"),
        settings={
            "processor_config.json": {"processor_class": "MiniCPMVProcessor"},
            "preprocessor_config.json": {
                "image_processor_type": "MiniCPMVImageProcessor",
                "auto_map": {
                    "AutoImageProcessor": (
                        "image_processing_minicpmv.MiniCPMVImageProcessor"
                    )
                },
                "max_slice_nums": 4,
                "scale_resolution": 112,
                "patch_size": 14,
                "image_feature_size": 16,
                "version": 2.6,
            },
        },
        engine_args={
            "limit_mm_per_prompt": {"image": 2, "video": 0},
            "trust_remote_code": True,
        },
        cpu_fault="The resampler asks whether a CUDA graph is being captured.",
        mend_stock=_mend_capturing,
    ),
    "kimi_vl": Recipe(
        "Kimi-VL",
        "KimiVLForConditionalGeneration",
        config=_kimi_vl_config,
        hf_class="",
        shapes=_kimi_vl_shapes,
        special_tokens=(
            "[BOS]",
            "[EOS]",
            "[PAD]",
            "<|im_end|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_middle|>",
            "<|media_start|>",
            "<|media_content|>",
            "<|media_pad|>",
            "<|media_end|>",
        ),
        template=(
            "<|im_user|>user<|im_middle|>{media}{text}<|im_end|>"
            "<|im_assistant|>assistant<|im_middle|>"
        ),
        placeholder="<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
        roles={"bos_token": "[BOS]", "eos_token": "<|im_end|>", "pad_token": "[PAD]"},
        files=remote_code("image_processing_kimi_vl.py", "processing_kimi_vl.py"),
        settings={
            "processor_config.json": {
                "processor_class": "KimiVLProcessor",
                "auto_map": {"AutoProcessor": "processing_kimi_vl.KimiVLProcessor"},
            },
            "preprocessor_config.json": {
                "image_processor_type": "KimiVLImageProcessor",
                "auto_map": {
                    "AutoProcessor": "processing_kimi_vl.KimiVLProcessor",
                    "AutoImageProcessor": (
                        "image_processing_kimi_vl.KimiVLImageProcessor"
                    ),
                },
                "patch_size": 14,
                "in_token_limit": 1024,
                "merge_kernel_size": [2, 2],
            },
        },
        # One by one: with vLLM's attention for MLA on CPU the text model answers
        # otherwise when a prompt has company, pictures or not.
        engine_args={
            "limit_mm_per_prompt": {"image": 2},
            "max_num_seqs": 1,
            "trust_remote_code": True,
        },
    ),
    "nemotron_parakeet": Recipe(
        "Nemotron Nano Omni (Parakeet)",
        "NemotronH_Nano_VL_V2",
        config=_nemotron_config,
        hf_class="",
        shapes=_nemotron_shapes,
        leave_out="num_batches_tracked",
        special_tokens=(
            *QWEN_TOKENS,
            "<img>",
            "</img>",
            "<image>",
            "<so_start>",
            "<so_end>",
            "<so_embedding>",
        ),
        template=QWEN_TEMPLATE,
        placeholder="<so_embedding>",
        roles=QWEN_ROLES,
        files=remote_code("configuration_nemotron_vl.py"),
        modality="audio",
        samples=([0.3], [3.0], [12.5], [5.0, 0.7]),
        # "What is said?" ends in near ties, which rounding to bfloat16 decides.
        text="Who speaks?",
        # The projection takes the encoder's output in bfloat16, whatever its own type;
        # one request by one, as company changes what bfloat16 rounds. Prefix caching
        # wants a Mamba layer.
        engine_args={
            "limit_mm_per_prompt": {"audio": 2, "image": 0, "video": 0},
            "enable_prefix_caching": False,
            "dtype": "bfloat16",
            "max_num_seqs": 1,
            "trust_remote_code": True,
        },
    ),
}
