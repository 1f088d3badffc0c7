# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen3-Omni checkpoint, and Hugging Face's encoders with its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import (
    hf_encoder,
    read_weights,
    save_preprocessor_config,
)
from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    qwen_generation_config,
    random_weights,
    save_checkpoint,
)

# In the order in which Qwen numbers them.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<|audio_pad|>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model; also the width of the audio embeddings
AUDIO_HIDDEN = 128  # heads of 32, as in the text model
VISION_HIDDEN = 64
PATCH = 16
SPATIAL_MERGE = 2
LEARNED_GRID = 16  # the position embeddings of the vision encoder are 16 x 16

# Hugging Face's thinker has the published names but for the prefix, and the experts.
PUBLISHED_PREFIXES = {"": "thinker."}

# That of Qwen/Qwen3-Omni-30B-A3B-Instruct, without its tools.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content"
    " or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'audio' or 'audio' in content"
    " or 'audio_url' in content %}"
    "<|audio_start|><|audio_pad|><|audio_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen3_omni(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_pixels: int = 512 * 32 * 32,
) -> Path:
    """Writes a tiny Qwen3-Omni checkpoint directory: the thinker, no talker.

    Both text layers have four experts. Vision blocks 1 and, from depth 4 on, 3 are also
    given to the text layers (deepstack).

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: audio encoder layers, and vision transformer blocks, at least 2.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.
        max_pixels: the image processor scales larger images down to this area;
            one embedding is 32 x 32 pixels. The published value is 12845056.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 2: there would be no block for deepstack.
    """
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    check_depth(depth, least=2)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(vocab, depth, dtype)
    shapes = parameter_shapes(
        Qwen3OmniMoeThinkerForConditionalGeneration,
        config.thinker_config,
        PUBLISHED_PREFIXES,
    )
    weights = random_weights(_experts_apart(shapes), seed=seed, dtype=dtype)
    for name, tensor in weights.items():
        # Sharper attention to the media than random weights give, so that an answer
        # depends on them.
        if name.startswith("thinker.model.") and name.endswith("q_norm.weight"):
            tensor *= 2
    answer_in_visible_characters(weights["thinker.lm_head.weight"], vocab)

    generation_config = qwen_generation_config(vocab)
    processor = _processor(vocab, max_pixels)
    path = save_checkpoint(
        path, parts=[config, generation_config, processor], weights=weights
    )
    save_preprocessor_config(path, processor)
    return path


def qwen3_omni_prompt(text: str = "", *, audios: int = 0, images: int = 0) -> str:
    """Returns what the chat template makes of one user turn: media, then text.

    Args:
        text: the user's words.
        audios: audio placeholders, before the images.
        images: image placeholders.
    """
    media = "<|audio_start|><|audio_pad|><|audio_end|>" * audios
    media += "<|vision_start|><|image_pad|><|vision_end|>" * images
    return f"<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"


def load_hf_qwen3_omni_audio_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen3-Omni audio encoder with the checkpoint's weights.

    Called as `encoder(features, feature_lens=frames).last_hidden_state`, with the
    log-mel features of all clips, [128, frames of all clips], and each clip's frames,
    it gives [tokens of all clips, hidden size of the text model].

    Args:
        path: a directory that `tiny_qwen3_omni` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
        Qwen3OmniMoeAudioEncoder,
    )

    config = AutoConfig.from_pretrained(path).thinker_config.audio_config
    weights = read_weights(path, "thinker.audio_tower.")
    return hf_encoder(Qwen3OmniMoeAudioEncoder, config, weights, dtype)


def load_hf_qwen3_omni_vision_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen3-Omni vision encoder with the checkpoint's weights.

    Called with pixel values and grid_thw it gives `pooler_output`, and the
    `deepstack_features` that vLLM has to the right of it, each [tokens, hidden size of
    the text model].

    Args:
        path: a directory that `tiny_qwen3_omni` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
        Qwen3OmniMoeVisionEncoder,
    )

    config = AutoConfig.from_pretrained(path).thinker_config.vision_config
    weights = read_weights(path, "thinker.visual.")
    return hf_encoder(Qwen3OmniMoeVisionEncoder, config, weights, dtype)


def _experts_apart(
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Gives each expert parameters of its own, as published.

    Hugging Face has one for all experts of a layer, and gate and up in one.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if ".experts." not in name:
            found[name] = shape
            continue
        layer, _, part = name.rpartition(".")
        experts, out, fan_in = shape
        for i in range(experts):
            if part == "gate_up_proj":
                found[f"{layer}.{i}.gate_proj.weight"] = (out // 2, fan_in)
                found[f"{layer}.{i}.up_proj.weight"] = (out // 2, fan_in)
            else:
                found[f"{layer}.{i}.{part}.weight"] = (out, fan_in)
    return found


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen3OmniMoeConfig

    audio_config = {
        "num_mel_bins": 128,
        "encoder_layers": depth,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 4 * AUDIO_HIDDEN,
        "d_model": AUDIO_HIDDEN,
        "max_source_positions": 1500,
        "n_window": 50,
        "n_window_infer": 800,
        "conv_chunksize": 500,
        "downsample_hidden_size": 16,
        "output_dim": HIDDEN,
        "dtype": dtype,
    }
    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "moe_intermediate_size": HIDDEN,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        # Rotary pairs for time, height, width: head size 32, so 16 pairs.
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
            "interleaved": True,
        },
        "tie_word_embeddings": False,
        "bos_token_id": vocab["<|endoftext|>"],
        "eos_token_id": vocab["<|im_end|>"],
        "pad_token_id": vocab["<|endoftext|>"],
        "dtype": dtype,
    }
    vision_config = {
        "depth": depth,
        "hidden_size": VISION_HIDDEN,
        "num_heads": 4,
        "intermediate_size": 172,
        "patch_size": PATCH,
        "spatial_merge_size": SPATIAL_MERGE,
        "temporal_patch_size": 2,
        "image_size": LEARNED_GRID * PATCH,
        "num_position_embeddings": LEARNED_GRID**2,
        "apply_vit_abs_pos_embed": True,
        "deepstack_visual_indexes": [i for i in (1, 3) if i < depth],
        "out_hidden_size": HIDDEN,
        "dtype": dtype,
    }
    return Qwen3OmniMoeConfig(
        architectures=["Qwen3OmniMoeForConditionalGeneration"],
        thinker_config={
            "audio_config": audio_config,
            "text_config": text_config,
            "vision_config": vision_config,
            "audio_token_id": vocab["<|audio_pad|>"],
            "audio_start_token_id": vocab["<|audio_start|>"],
            "audio_end_token_id": vocab["<|audio_end|>"],
            "image_token_id": vocab["<|image_pad|>"],
            "video_token_id": vocab["<|video_pad|>"],
            "vision_start_token_id": vocab["<|vision_start|>"],
            "vision_end_token_id": vocab["<|vision_end|>"],
            "position_id_per_seconds": 13,
            "seconds_per_chunk": 2,
            "dtype": dtype,
        },
        enable_audio_output=False,
        im_start_token_id=vocab["<|im_start|>"],
        im_end_token_id=vocab["<|im_end|>"],
        tts_pad_token_id=vocab["<tts_pad>"],
        tts_bos_token_id=vocab["<tts_text_bos>"],
        tts_eos_token_id=vocab["<tts_text_eod>"],
        dtype=dtype,
    )


def _processor(vocab: dict[str, int], max_pixels: int) -> Any:
    from transformers import (
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3OmniMoeProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "audio_token": "<|audio_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
        model_max_length=32768,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    sizes = {"min_pixels": 4 * 32 * 32, "max_pixels": max_pixels}
    pixels = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": SPATIAL_MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return Qwen3OmniMoeProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, **pixels),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=Qwen2VLVideoProcessor(
            **sizes, **pixels, cap_pixels_per_frame=False
        ),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=128, chunk_length=300, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
