# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny Ultravox checkpoint, and Hugging Face's encoder with its weights."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmc_testing.checkpoints.common import hf_encoder, read_weights
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
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model; also the width of the audio embeddings
AUDIO_HIDDEN = 128  # four heads of 32, the smallest that attention on CPU takes
POSITIONS = 1500  # of 30 s of speech, as published
STACK = 8  # encoder outputs that become one embedding
PROJECTOR_HIDDEN = 256

# ultravox_processing.py: neither vLLM nor transformers has a processor, so it is
# published with the checkpoint. This one gives what vLLM asks the published one for.
PROCESSING = '''\
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ultravox's processor: chunks of at most 30 s, padded to the longest."""

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

CONTEXT = 3000  # frames
FRAMES_PER_TOKEN = 16


class UltravoxProcessor(ProcessorMixin):
    def __init__(self, audio_processor=None, tokenizer=None):
        super().__init__(audio_processor=audio_processor, tokenizer=tokenizer)
        self.audio_token_replacement = tokenizer.eos_token

    def __call__(
        self,
        text=None,
        audios=None,
        sampling_rate=None,
        return_tensors="pt",
        include_audio_num_chunks=False,
        **kwargs,
    ):
        data, tokens = {}, []
        if audios is not None and len(audios) > 0:
            data = self._chunks(list(audios), sampling_rate, **kwargs)
            per_audio = data["audio_token_len"].split(data["audio_num_chunks"].tolist())
            tokens = [int(lengths.sum()) for lengths in per_audio]
            if not include_audio_num_chunks:
                del data["audio_num_chunks"]
        if text is not None:
            first, *rest = text.split("<|audio|>")
            if len(rest) != len(tokens):
                raise ValueError(f"{len(rest)} placeholders, {len(tokens)} audios")
            ids = self.tokenizer.encode(first, add_special_tokens=False)
            token = self.tokenizer.convert_tokens_to_ids(self.audio_token_replacement)
            for count, part in zip(tokens, rest):
                ids += [token] * count
                ids += self.tokenizer.encode(part, add_special_tokens=False)
            data |= {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
        return BatchFeature(data, tensor_type=return_tensors)

    def _chunks(self, audios, sampling_rate, **kwargs):
        hop = self.audio_processor.hop_length
        # The feature extractor needs two hops.
        audios = [np.pad(x, (0, max(0, 2 * hop - len(x)))) for x in audios]
        found = self.audio_processor(
            audios,
            sampling_rate=sampling_rate,
            padding="longest",
            pad_to_multiple_of=hop,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
            **kwargs,
        )
        features, frames = found.input_features, found.attention_mask.sum(-1)
        size = min(features.shape[-1], CONTEXT)
        features = torch.nn.functional.pad(features, (0, -features.shape[-1] % size))
        counts = -(-frames // size)
        lens = torch.cat(
            [
                (of_one - size * torch.arange(count)).clamp(max=size)
                for of_one, count in zip(frames, counts)
            ]
        )
        return {
            "audio_values": torch.cat(
                [
                    torch.stack(mel.split(size, -1)[:count])
                    for mel, count in zip(features, counts)
                ]
            ),
            "audio_lens": lens,
            "audio_token_len": (-(-lens // FRAMES_PER_TOKEN)).int(),
            "audio_num_chunks": counts,
        }
'''

CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}"
    "{% else %}<|audio|>{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def tiny_ultravox(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny Ultravox v0.5 checkpoint directory: two Llama layers, 128 mel bins.

    It needs `trust_remote_code`, as the published one does: the processor is code in
    the checkpoint. The text model's weights are in the same file, which the published
    checkpoint only names.

    Args:
        path: the directory; an older checkpoint there is written over.
        depth: encoder layers, at least 1.
        seed: same seed (and same arguments and libraries), same bytes.
        dtype: of the weights, and the `dtype` of the config.

    Returns:
        `path`.

    Raises:
        ValueError: if depth < 1.
    """
    from transformers import GenerationConfig, LlamaForCausalLM, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

    check_depth(depth)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    audio, text = _audio_config(depth, dtype), _text_config(vocab, dtype)
    projector_input = STACK * AUDIO_HIDDEN
    shapes = {
        **parameter_shapes(WhisperEncoder, audio, renames={"": "audio_tower."}),
        **parameter_shapes(LlamaForCausalLM, text, renames={"": "language_model."}),
        "multi_modal_projector.ln_pre.weight": (projector_input,),
        "multi_modal_projector.linear_1.weight": (PROJECTOR_HIDDEN, projector_input),
        "multi_modal_projector.ln_mid.weight": (PROJECTOR_HIDDEN // 2,),
        "multi_modal_projector.linear_2.weight": (HIDDEN, PROJECTOR_HIDDEN // 2),
    }
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    weights["audio_tower.embed_positions.weight"] = sinusoids(
        POSITIONS, AUDIO_HIDDEN
    ).to(dtype)
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.startswith("language_model.") and name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
            tensor *= 2
    answer_in_visible_characters(weights["language_model.lm_head.weight"], vocab)

    generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=vocab["<|finetune_right_pad_id|>"],
        eos_token_id=[vocab["<|eot_id|>"], vocab["<|end_of_text|>"]],
    )
    feature_extractor = WhisperFeatureExtractor(feature_size=128)
    directory = save_checkpoint(
        path,
        parts=[generation_config, feature_extractor, _tokenizer(vocab)],
        weights=weights,
    )
    # By hand: vLLM's config class does not save the text model's config.
    config = {
        "architectures": ["UltravoxModel"],
        "model_type": "ultravox",
        "audio_config": audio.to_dict(),
        "text_config": text.to_dict(),
        "audio_token_index": vocab["<|reserved_special_token_0|>"],
        "hidden_size": PROJECTOR_HIDDEN,
        "stack_factor": STACK,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "vocab_size": VOCAB_SIZE,
        "dtype": str(dtype).removeprefix("torch."),
    }
    processor = {
        "processor_class": "UltravoxProcessor",
        "auto_map": {"AutoProcessor": "ultravox_processing.UltravoxProcessor"},
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "processor_config.json").write_text(json.dumps(processor, indent=2))
    (directory / "ultravox_processing.py").write_text(PROCESSING)
    return directory


def ultravox_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns what the chat template makes of one user turn: audios, then text.

    Args:
        text: the user's words.
        audios: audio placeholders.
    """
    return (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{'<|audio|>' * audios}{text}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def load_hf_ultravox_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Returns Hugging Face's Whisper encoder, masked, and projector with these weights.

    Called with log-mel features [chunks, 128, frames], at most 3000 frames, and how
    many frames of each chunk are valid [chunks], it gives [chunks, tokens, hidden size
    of the text model]; of a chunk's tokens the first ceil(valid frames / 16) count. The
    last of these also takes in up to seven outputs of padding if there is padding, and
    vLLM, which lets padding attend to padding only, has another value there.

    Args:
        path: a directory that `tiny_ultravox` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers import WhisperConfig
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    published = json.loads((Path(path) / "config.json").read_text())
    config = WhisperConfig(**published["audio_config"])

    class Encoder(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.audio_tower = WhisperEncoder(config)
            self.multi_modal_projector = nn.ModuleDict(
                {
                    "ln_pre": LlamaRMSNorm(STACK * AUDIO_HIDDEN, eps=1e-6),
                    "linear_1": nn.Linear(
                        STACK * AUDIO_HIDDEN, PROJECTOR_HIDDEN, bias=False
                    ),
                    "ln_mid": LlamaRMSNorm(PROJECTOR_HIDDEN // 2, eps=1e-6),
                    "linear_2": nn.Linear(PROJECTOR_HIDDEN // 2, HIDDEN, bias=False),
                }
            )

        def forward(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
            # WhisperEncoder.forward takes 3000 frames only, and no mask.
            tower = self.audio_tower
            hidden = nn.functional.gelu(tower.conv1(features))
            hidden = nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
            length = hidden.shape[1]
            hidden = hidden + tower.embed_positions.weight[:length]
            valid = (frames - 1) // 2 + 1
            padding = torch.arange(length) >= valid[:, None]
            mask = torch.zeros(len(features), 1, 1, length, dtype=hidden.dtype)
            mask.masked_fill_(padding[:, None, None], torch.finfo(hidden.dtype).min)
            for layer in tower.layers:
                hidden = layer(hidden, mask.expand(-1, 1, length, -1))
            return self._project(tower.layer_norm(hidden))

        def _project(self, hidden: torch.Tensor) -> torch.Tensor:
            chunks, length, width = hidden.shape
            tokens = math.ceil(length / STACK)
            hidden = nn.functional.pad(hidden, (0, 0, 0, tokens * STACK - length))
            projector = self.multi_modal_projector
            stacked = projector["ln_pre"](hidden.view(chunks, tokens, STACK * width))
            value, gate = projector["linear_1"](stacked).chunk(2, dim=-1)
            normed = projector["ln_mid"](value * nn.functional.silu(gate))
            return projector["linear_2"](normed)

    weights = {
        name: tensor
        for name, tensor in read_weights(path).items()
        if not name.startswith("language_model.")
    }
    return hf_encoder(Encoder, config, weights, dtype)


def _audio_config(depth: int, dtype: torch.dtype) -> Any:
    from transformers import WhisperConfig

    return WhisperConfig(
        num_mel_bins=128,
        d_model=AUDIO_HIDDEN,
        encoder_layers=depth,
        encoder_attention_heads=4,
        encoder_ffn_dim=4 * AUDIO_HIDDEN,
        max_source_positions=POSITIONS,
        dtype=dtype,
    )


def _text_config(vocab: dict[str, int], dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        bos_token_id=vocab["<|begin_of_text|>"],
        eos_token_id=vocab["<|eot_id|>"],
        pad_token_id=vocab["<|finetune_right_pad_id|>"],
        dtype=dtype,
    )


def _tokenizer(vocab: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )
