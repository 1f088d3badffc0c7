# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What the recipes here share."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmc_testing.writer import (
    QWEN_ROLES,
    QWEN_TEMPLATE,
    Ids,
    linear,
    prefixed,
    shapes_of,
)
from vllm_mmc.demo.writer import (
    HIDDEN,
    QWEN_GENERATION,
    QWEN_SYSTEM,
    qwen_tokenizer,
    text_sizes,
)

POSITIONS = 1500  # of 30 s of speech, as published

WHISPER_ENCODER = "models.whisper.modeling_whisper.WhisperEncoder"
QWEN: dict[str, Any] = {
    "tokenizer": qwen_tokenizer,
    "template": QWEN_TEMPLATE,
    "roles": QWEN_ROLES,
    "generation": QWEN_GENERATION,
    "max_tokens": 32768,
}
"""Of a recipe whose text model is Qwen's."""
QWEN_ASSISTANT = QWEN | {"template": QWEN_SYSTEM + QWEN_TEMPLATE}
OMNI_NAMES = (
    *("image_token", "audio_token", "video_token"),
    *("vision_bos_token", "vision_eos_token", "audio_bos_token", "audio_eos_token"),
)
"""By which processors of images and sound ask the tokenizer for its tokens."""


def qwen_chat_template(placeholder: str) -> str:
    """Returns Qwen's turns with the parts of each in the order in which they come.

    Args:
        placeholder: of whatever is not text.
    """
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for content in message['content'] %}"
        "{% if content['type'] == 'text' %}{{ content['text'] }}"
        "{% else %}" + placeholder + "{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def qwen_sizes(ids: Ids, **overrides: Any) -> dict[str, Any]:
    """Returns the same of one of Qwen's, with the ids of its tokens."""
    end = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    return text_sizes(**end, **overrides)


def whisper_sizes(depth: int, **overrides: Any) -> dict[str, Any]:
    """Returns the sizes of an audio encoder, by Whisper's names.

    Args:
        depth: layers.
        overrides: further values, or others for these.
    """
    return {
        "num_mel_bins": 128,
        "d_model": HIDDEN,
        "encoder_layers": depth,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 4 * HIDDEN,
        "max_source_positions": POSITIONS,
    } | overrides


def whisper_tokens(end: int, **overrides: Any) -> dict[str, Any]:
    """Returns what a config of Whisper says of tokens, where its decoder is not used.

    Args:
        end: id of the token that stands for all special ones.
        overrides: further values, or others for these.
    """
    roles = ("bos", "eos", "pad", "decoder_start")
    return {
        **dict.fromkeys((f"{role}_token_id" for role in roles), end),
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    } | overrides


def omni(thinker: str, named: Sequence[str]) -> dict[str, Any]:
    """Returns what recipes of pictures, sound and a thinker share.

    Args:
        thinker: its class, in transformers.
        named: its tokens, in the order of `OMNI_NAMES`.
    """
    return {
        "least_depth": 2,
        "named_tokens": dict(zip(OMNI_NAMES, named, strict=True)),
        "hf_class": "",
        "shapes": shapes_of(("thinker.", thinker, "thinker_config")),
        "modality": "audio",
        "engine_args": {"limit_mm_per_prompt": {"audio": 2, "image": 2, "video": 0}},
        "serves": "chat",
    }


def omni_thinker(
    ids: Ids, named: Sequence[str], suffix: str, **parts: Any
) -> dict[str, Any]:
    """Returns the config of a thinker.

    Args:
        ids: token -> id.
        named: its tokens, in the order of `OMNI_NAMES`.
        suffix: of the names of the ids of an image, a clip and a video.
        parts: its other values.
    """
    image, audio, video, vision_start, vision_end, start, end = (ids[t] for t in named)
    return {
        f"image_token_{suffix}": image,
        f"audio_token_{suffix}": audio,
        f"video_token_{suffix}": video,
        "vision_start_token_id": vision_start,
        "vision_end_token_id": vision_end,
        "audio_start_token_id": start,
        "audio_end_token_id": end,
        "seconds_per_chunk": 2,
    } | parts


def omni_processor(tokenizer: Any, name: str, side: int, **pixels: Any) -> Any:
    """Returns a processor of images and sound, and what else writes its files.

    Args:
        tokenizer: of the checkpoint.
        name: of the class, in transformers.
        side: of the square of pixels that becomes one embedding.
        pixels: further arguments of the processors of images and videos.
    """
    import transformers

    pixels |= {"min_pixels": 4 * side**2, "max_pixels": 512 * side**2}
    pixels |= {"patch_size": side // 2, "temporal_patch_size": 2, "merge_size": 2}
    processor = getattr(transformers, name)(
        image_processor=transformers.Qwen2VLImageProcessor(**pixels),
        # Unset, each process warns; False is how the published processor behaves.
        video_processor=transformers.Qwen2VLVideoProcessor(
            **pixels, cap_pixels_per_frame=False
        ),
        # As published: up to 300 s, to which every clip is padded for its spectrogram.
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=128, chunk_length=300, return_attention_mask=True
        ),
        tokenizer=tokenizer,
    )
    return [processor, BothPreprocessors(processor)]


def speech_processor(name: str) -> Callable[[Any], Any]:
    """Returns what makes a processor of a tokenizer: clips of 30 s, and their masks.

    Args:
        name: of the class, in transformers.
    """

    def processor(tokenizer: Any) -> Any:
        import transformers

        extract = transformers.WhisperFeatureExtractor
        features = extract(feature_size=128, return_attention_mask=True)
        return getattr(transformers, name)(
            feature_extractor=features, tokenizer=tokenizer
        )

    return processor


def features_beside(feature_size: int, **settings: Any) -> Callable[[Any], list[Any]]:
    """Returns what writes the files of Whisper's features beside a tokenizer's.

    Args:
        feature_size: mel bins.
        settings: what else preprocessor_config.json says.
    """

    def parts(tokenizer: Any) -> list[Any]:
        from transformers import WhisperFeatureExtractor

        features = WhisperFeatureExtractor(feature_size=feature_size, **settings)
        return [features, tokenizer] if tokenizer else [features]

    return parts


class BothPreprocessors:
    """Writes preprocessor_config.json, one for audio and images, as published."""

    def __init__(self, processor: Any) -> None:
        self.parts = processor.feature_extractor, processor.image_processor

    def save_pretrained(self, path: Path) -> None:
        settings = {k: v for part in self.parts for k, v in part.to_dict().items()}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (path / "preprocessor_config.json").write_text(text)


def vq_adaptor(first: int, second: int, norm: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what makes one embedding of four encoder outputs.

    Args:
        first: index of the first linear layer.
        second: of the second.
        norm: of the layer norm.
    """
    shapes = {
        **linear(f"{first}", 4 * HIDDEN, HIDDEN),
        **linear(f"{second}", HIDDEN, HIDDEN),
        f"{norm}.weight": (HIDDEN,),
        f"{norm}.bias": (HIDDEN,),
    }
    return prefixed("model.vq_adaptor.layers.", shapes)
