# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Qwen2.5-Omni checkpoint, and Hugging Face's encoders with its weights."""

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
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model; also the width of all embeddings
AUDIO_HIDDEN = 128  # heads of 32, as in the text model
VISION_HIDDEN = 64
PATCH = 14
SPATIAL_MERGE = 2

# Hugging Face's thinker has the published names but for the prefix.
PUBLISHED_PREFIXES = {"": "thinker."}

# As published with Qwen/Qwen2.5-Omni-7B.
CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}"
    "{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content"
    " or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content"
    " or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_qwen2_5_omni(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_pixels: int = 512 * 28 * 28,
) -> Path:
    """Writes a tiny Qwen2.5-Omni checkpoint directory: the thinker, no talker.

    Every second vision block, starting with the second, attends fully; the others
    attend within windows of 112 pixels.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: audio encoder layers, and vision transformer blocks, at least 2.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.
        max_pixels: the image processor scales larger images down to this area;
            one embedding is 28 x 28 pixels. The published value is 16384 * 28 * 28.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 2: windowed and full blocks could not both exist.
    """
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration

    check_depth(depth, least=2)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(vocab, depth, dtype)
    shapes = parameter_shapes(
        Qwen2_5OmniThinkerForConditionalGeneration,
        config.thinker_config,
        PUBLISHED_PREFIXES,
    )
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    for name, tensor in weights.items():
        # Sharper text attention than random weights give, so that an answer depends on
        # the audio and the image.
        if name.startswith("thinker.model.") and name.endswith(
            ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
        ):
            tensor *= 2
    answer_in_visible_characters(weights["thinker.lm_head.weight"], vocab)

    generation_config = qwen_generation_config(vocab)
    processor = _processor(vocab, max_pixels)
    path = save_checkpoint(
        path, parts=[config, generation_config, processor], weights=weights
    )
    save_preprocessor_config(path, processor)
    return path


def qwen2_5_omni_prompt(text: str = "", *, audios: int = 0, images: int = 0) -> str:
    """Returns what the chat template makes of one user turn: media, then text.

    Args:
        text: the user's words.
        audios: audio placeholders, before the images.
        images: image placeholders.
    """
    media = "<|audio_bos|><|AUDIO|><|audio_eos|>" * audios
    media += "<|vision_bos|><|IMAGE|><|vision_eos|>" * images
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"
    )


def load_hf_qwen2_5_omni_audio_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen2.5-Omni audio encoder with the checkpoint's weights.

    Called as `encoder(features, feature_lens=frames).last_hidden_state`, with the
    log-mel features of all clips, [128, frames of all clips], and each clip's frames,
    it gives [tokens of all clips, hidden size of the text model].

    Args:
        path: a directory that `tiny_qwen2_5_omni` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniAudioEncoder,
    )

    config = AutoConfig.from_pretrained(path).thinker_config.audio_config
    weights = read_weights(path, "thinker.audio_tower.")
    return hf_encoder(Qwen2_5OmniAudioEncoder, config, weights, dtype)


def load_hf_qwen2_5_omni_vision_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Qwen2.5-Omni vision encoder with these weights.

    Called as `encoder(pixel_values, grid_thw).pooler_output` it gives the embeddings,
    [tokens, out_hidden_size].

    Args:
        path: a directory that `tiny_qwen2_5_omni` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniVisionEncoder,
    )

    config = AutoConfig.from_pretrained(path).thinker_config.vision_config
    weights = read_weights(path, "thinker.visual.")
    return hf_encoder(Qwen2_5OmniVisionEncoder, config, weights, dtype)


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from transformers import Qwen2_5OmniConfig

    audio_config = {
        "num_mel_bins": 128,
        "encoder_layers": depth,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 4 * AUDIO_HIDDEN,
        "d_model": AUDIO_HIDDEN,
        "max_source_positions": 1500,
        "n_window": 100,
        "output_dim": HIDDEN,
        "dtype": dtype,
    }
    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        # Rotary pairs for time, height, width: head size 32, so 16 pairs.
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]},
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
        "tokens_per_second": 25,
        "window_size": 112,
        "fullatt_block_indexes": list(range(1, depth, 2)),
        "out_hidden_size": HIDDEN,
        "dtype": dtype,
    }
    return Qwen2_5OmniConfig(
        architectures=["Qwen2_5OmniModel"],
        thinker_config={
            "audio_config": audio_config,
            "text_config": text_config,
            "vision_config": vision_config,
            "audio_token_index": vocab["<|AUDIO|>"],
            "audio_start_token_id": vocab["<|audio_bos|>"],
            "audio_end_token_id": vocab["<|audio_eos|>"],
            "image_token_index": vocab["<|IMAGE|>"],
            "video_token_index": vocab["<|VIDEO|>"],
            "vision_start_token_id": vocab["<|vision_bos|>"],
            "vision_end_token_id": vocab["<|vision_eos|>"],
            "position_id_per_seconds": 25,
            "seconds_per_chunk": 2,
            "dtype": dtype,
        },
        enable_audio_output=False,
        dtype=dtype,
    )


def _processor(vocab: dict[str, int], max_pixels: int) -> Any:
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|IMAGE|>",
            "audio_token": "<|AUDIO|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        },
        model_max_length=32768,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    sizes = {"min_pixels": 4 * 28 * 28, "max_pixels": max_pixels}
    patches = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": SPATIAL_MERGE,
    }
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes, **patches),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=Qwen2VLVideoProcessor(
            **sizes, **patches, cap_pixels_per_frame=False
        ),
        # As published: up to 300 s, to which every clip is padded for its spectrogram.
        feature_extractor=WhisperFeatureExtractor(
            feature_size=128, chunk_length=300, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
