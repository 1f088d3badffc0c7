# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Llama4 checkpoint: a text layer that is dense, and one of four experts."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmc_testing.hf_encoders import Projected, read_weights, with_weights
from mmc_testing.writer import VISION_HIDDEN, Ids, Recipe, prefixed, tokens
from vllm_mmc.demo.writer import HIDDEN, byte_level_tokenizer, text_sizes

VISION_OUTPUT = 96
PATCH = 14
TILE = 112  # pixels: 64 patches, which become 16 embeddings


def _config(ids: Ids, depth: int, dtype: torch.dtype) -> Any:
    from transformers import Llama4Config

    return Llama4Config(
        text_config=text_sizes(
            intermediate_size=HIDDEN,
            intermediate_size_mlp=2 * HIDDEN,
            head_dim=32,
            num_local_experts=4,
            interleave_moe_layer_step=2,
            use_qk_norm=False,  # as in Maverick; it would undo sharper attention
            bos_token_id=ids["<|begin_of_text|>"],
            eos_token_id=ids["<|eot|>"],
            pad_token_id=ids["<|finetune_right_pad|>"],
            dtype=dtype,
        ),
        vision_config={
            "num_hidden_layers": depth,
            "hidden_size": VISION_HIDDEN,
            "num_attention_heads": 4,
            "intermediate_size": 4 * VISION_HIDDEN,  # also what pixel shuffle gives
            "image_size": TILE,
            "patch_size": PATCH,
            "projector_input_dim": VISION_OUTPUT,
            "projector_output_dim": VISION_OUTPUT,
            "vision_output_dim": VISION_OUTPUT,
            "dtype": dtype,
        },
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
        image_token_index=ids["<|patch|>"],
    )


def _processor(tokenizer: Any) -> Any:
    from transformers import Llama4ImageProcessor, Llama4Processor

    size = {"height": TILE, "width": TILE}
    return Llama4Processor(
        # Of so many tiles at most, the one of the whole image aside; published are 16
        # of 336 x 336 pixels.
        image_processor=Llama4ImageProcessor(size=size, max_patches=4),
        tokenizer=tokenizer,
        patch_size=PATCH,
    )


def _scale_experts(weights: dict[str, torch.Tensor], config: Any) -> None:
    """They are [experts, in, out], and drawn for in * out inputs."""
    for name, tensor in weights.items():
        if ".experts." in name:
            tensor *= tensor.shape[-1] ** 0.5


def _load_hf_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Returns Hugging Face's vision tower and projector with these weights.

    Called with pixels [tiles, 3, 112, 112] it gives the embeddings, [tiles, 16, hidden
    size of the text model].
    """
    from transformers import AutoConfig
    from transformers.models.llama4.modeling_llama4 import (
        Llama4MultiModalProjector,
        Llama4VisionModel,
    )

    config = AutoConfig.from_pretrained(path)
    config.vision_config._attn_implementation = "sdpa"
    tower = Llama4VisionModel(config.vision_config)
    encoder = Projected(tower, Llama4MultiModalProjector(config))
    weights = prefixed("tower.", read_weights(path, "vision_model."))
    weights |= prefixed("projector.", read_weights(path, "multi_modal_projector."))
    return with_weights(encoder, weights, dtype)


def _sharded_inputs() -> dict[str, Any]:
    # An odd number of tiles: vLLM pads those of the last rank.
    return {
        "pixel_values": torch.randn(9, 3, TILE, TILE),
        "patches_per_image": torch.tensor([5, 1, 3]),
        "aspect_ratios": torch.tensor([[2, 2], [1, 1], [2, 1]]),
    }


RECIPES = {
    "llama4": Recipe(
        "Llama4",
        "Llama4ForConditionalGeneration",
        config=_config,
        least_depth=1,
        special_tokens=tokens(
            "<|begin_of_text|> <|end_of_text|> <|header_start|> <|header_end|> <|eom|> "
            "<|eot|> <|python_start|> <|python_end|> <|finetune_right_pad|> "
            "<|image_start|> <|image_end|> <|tile_x_separator|> <|tile_y_separator|> "
            "<|image|> <|patch|>"
        ),
        tokenizer=partial(byte_level_tokenizer, use_regex=True),
        processor=_processor,
        template=(
            "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{media}{text}"
            "<|eot|><|header_start|>assistant<|header_end|>\n\n"
        ),
        placeholder="<|image|>",
        chat_template="",  # the processor has its own, which is the published one
        roles={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot|>",
            "pad_token": "<|finetune_right_pad|>",
        },
        generation={
            "bos_token_id": "<|begin_of_text|>",
            "pad_token_id": "<|finetune_right_pad|>",
            "eos_token_id": ("<|end_of_text|>", "<|eom|>", "<|eot|>"),
        },
        max_tokens=32768,
        mend=_scale_experts,
        engine_args={"limit_mm_per_prompt": {"image": 2, "video": 0}},
        hf_encoders={"image": _load_hf_encoder},
        regions=(
            "CompiledLlama4UnfoldConvolution",
            "CompiledLlama4VisionEncoderLayer",
            "CompiledLlama4VisionPixelShuffleMLP",
            "CompiledLlama4MultiModalProjector",
        ),
        backbones_seen=2,
        sharded_inputs=_sharded_inputs,
    )
}
