# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Llama4 checkpoint with its mixture of experts, and Hugging Face's encoder."""

from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import read_weights
from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    random_weights,
    save_checkpoint,
)

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model
VISION_HIDDEN = 64
VISION_OUTPUT = 96
PATCH = 14
TILE = 112  # pixels: 64 patches, which become 16 embeddings


def tiny_llama4(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_patches: int = 4,
) -> Path:
    """Writes a tiny Llama4 checkpoint directory.

    The text model has a dense layer and one of four experts.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: vision transformer blocks, at least 1.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.
        max_patches: tiles of 112 x 112 pixels that an image is cut into at most, the
            one of the whole image aside. The published value is 16, of 336 x 336.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 1.
    """
    from transformers import GenerationConfig, Llama4ForConditionalGeneration

    check_depth(depth)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(vocab, depth, dtype)
    shapes = parameter_shapes(Llama4ForConditionalGeneration, config, renames={})
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    for name, tensor in weights.items():
        # Sharper text attention than random weights give, so that an answer depends on
        # the image.
        if name.startswith("language_model.") and name.endswith(
            ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
        ):
            tensor *= 2
        if ".experts." in name:  # [experts, in, out], drawn for in * out inputs
            tensor *= tensor.shape[-1] ** 0.5
    answer_in_visible_characters(weights["language_model.lm_head.weight"], vocab)

    generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=vocab["<|begin_of_text|>"],
        pad_token_id=vocab["<|finetune_right_pad|>"],
        eos_token_id=[vocab["<|end_of_text|>"], vocab["<|eom|>"], vocab["<|eot|>"]],
    )
    processor = _processor(vocab, max_patches)
    return save_checkpoint(
        path,
        parts=[config, generation_config, processor, processor.image_processor],
        weights=weights,
    )


def llama4_prompt(text: str, *, images: int = 0) -> str:
    """Returns what the chat template makes of one user turn: images, then text.

    Args:
        text: the user's words.
        images: image placeholders.
    """
    return (
        f"<|begin_of_text|><|header_start|>user<|header_end|>\n\n{'<|image|>' * images}"
        f"{text}<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )


def load_hf_llama4_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Llama4 vision tower and projector with these weights.

    Called with pixels [tiles, 3, 112, 112] it gives the embeddings, [tiles, 16, hidden
    size of the text model].

    Args:
        path: a directory that `tiny_llama4` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import AutoConfig
    from transformers.models.llama4.modeling_llama4 import (
        Llama4MultiModalProjector,
        Llama4VisionModel,
    )

    class Encoder(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.vision_model = Llama4VisionModel(config.vision_config)
            self.multi_modal_projector = Llama4MultiModalProjector(config)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            hidden = self.vision_model(pixels).last_hidden_state
            return self.multi_modal_projector(hidden)

    config = AutoConfig.from_pretrained(path)
    config.vision_config._attn_implementation = "sdpa"
    encoder = Encoder(config)
    for name, part in encoder.named_children():
        part.load_state_dict(read_weights(path, f"{name}."), strict=True)
    for parameter in encoder.parameters():  # the rotary table has to stay complex
        parameter.data = parameter.data.to(dtype)
    return encoder.eval().requires_grad_(False)


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from transformers import Llama4Config

    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "intermediate_size_mlp": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,  # as in Maverick; it would undo sharper attention
        "max_position_embeddings": 32768,
        "bos_token_id": vocab["<|begin_of_text|>"],
        "eos_token_id": vocab["<|eot|>"],
        "pad_token_id": vocab["<|finetune_right_pad|>"],
        "dtype": dtype,
    }
    vision_config = {
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
    }
    return Llama4Config(
        architectures=["Llama4ForConditionalGeneration"],
        text_config=text_config,
        vision_config=vision_config,
        boi_token_index=vocab["<|image_start|>"],
        eoi_token_index=vocab["<|image_end|>"],
        image_token_index=vocab["<|patch|>"],
        dtype=dtype,
    )


def _processor(vocab: dict[str, int], max_patches: int) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import (
        Llama4ImageProcessor,
        Llama4Processor,
        PreTrainedTokenizerFast,
    )

    bpe = Tokenizer(BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|finetune_right_pad|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=32768,
    )
    return Llama4Processor(
        image_processor=Llama4ImageProcessor(
            size={"height": TILE, "width": TILE}, max_patches=max_patches
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
    )
