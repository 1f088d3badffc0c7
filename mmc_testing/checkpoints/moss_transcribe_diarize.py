# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A tiny MOSS-Transcribe-Diarize checkpoint, and Hugging Face's encoder of it."""

import json
from pathlib import Path
from typing import Any

import torch

from mmc_testing.checkpoints.common import hf_encoder, read_weights
from vllm_mmc.demo.checkpoints.common import (
    answer_in_visible_characters,
    byte_level_vocab,
    check_depth,
    parameter_shapes,
    qwen_generation_config,
    random_weights,
    save_checkpoint,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
)
VOCAB_SIZE = 320

HIDDEN = 128  # of the text model and of the encoder: four heads of 32 in both
POSITIONS = 1500  # of 30 s of speech, as published
TIME_MERGE = 4  # encoder positions per audio token

# Hugging Face's prefixes -> those of OpenMOSS-Team/MOSS-Transcribe-Diarize.
PUBLISHED_ENCODER = {"": "model.whisper_encoder."}
PUBLISHED_TEXT = {"model.": "model.language_model."}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'text' %}{{ content['text'] }}"
    "{% else %}<|audio_start|><|audio_pad|><|audio_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Neither vLLM nor transformers has the processor class; the published one comes with
# the checkpoint as well.
PROCESSOR_MODULE = "processing_moss_transcribe_diarize"
PROCESSOR_CODE = '''\
"""Stands in for the processor that is published with MOSS-Transcribe-Diarize."""

import torch
from transformers import BatchFeature, ProcessorMixin


class MossTranscribeDiarizeProcessor(ProcessorMixin):
    attributes = ["feature_extractor", "tokenizer"]
    feature_extractor_class = "AutoFeatureExtractor"
    tokenizer_class = "AutoTokenizer"
    audio_token = "<|audio_pad|>"
    audio_start_token = "<|audio_start|>"
    audio_end_token = "<|audio_end|>"

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        audio_tokens_per_second=12.5,
        audio_merge_size=4,
        time_marker_every_seconds=5,
        chat_template=None,
    ):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.audio_tokens_per_second = audio_tokens_per_second
        self.audio_merge_size = audio_merge_size
        self.time_marker_every_seconds = time_marker_every_seconds
        self.audio_token_id = tokenizer.convert_tokens_to_ids(self.audio_token)

    def _audio_span_ids(self, num_tokens):
        """The placeholders, with the seconds written between them now and then."""
        every = self.time_marker_every_seconds
        step = int(self.audio_tokens_per_second * every)
        ids = []
        for i in range(num_tokens):
            ids.append(self.audio_token_id)
            seconds = (i + 1) // step * every
            heard = num_tokens / self.audio_tokens_per_second
            if (i + 1) % step == 0 and seconds <= heard:
                ids += self.tokenizer.encode(str(seconds), add_special_tokens=False)
        return ids

    def __call__(self, text, audio, **kwargs):
        """Log-mel features of pieces of 30 s, the last one padded with silence."""
        extract = self.feature_extractor
        stride = extract.hop_length * 2 * self.audio_merge_size
        pieces, lengths, mapping = [], [], []
        for index, samples in enumerate(audio):
            for start in range(0, len(samples), extract.n_samples):
                piece = samples[start : start + extract.n_samples]
                pieces.append(piece)
                lengths.append((len(piece) - 1) // stride + 1)
                mapping.append(index)
        features = extract(
            pieces,
            sampling_rate=extract.sampling_rate,
            padding="max_length",
            return_tensors="pt",
        )["input_features"]
        texts = [text] if isinstance(text, str) else text
        ids = [self.tokenizer.encode(t, add_special_tokens=False) for t in texts]
        return BatchFeature(
            {
                "input_ids": torch.tensor(ids),
                "input_features": features,
                "audio_feature_lengths": torch.tensor(lengths),
                "audio_chunk_mapping": torch.tensor(mapping),
            }
        )
'''


def tiny_moss_transcribe_diarize(
    path: Path | str,
    *,
    depth: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a tiny MOSS-Transcribe-Diarize checkpoint: two text layers, 80 mel bins.

    As published, the processor class is a Python file of the checkpoint, so an engine
    needs `trust_remote_code`. Here that file is a stand-in: it does what vLLM asks of
    it, but does not put the placeholders into the text itself.

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
    from transformers import Qwen3ForCausalLM, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

    check_depth(depth)
    vocab = byte_level_vocab(SPECIAL_TOKENS)
    config = _config(vocab, depth, dtype)
    shapes = {
        **parameter_shapes(WhisperEncoder, config.audio_config, PUBLISHED_ENCODER),
        **parameter_shapes(Qwen3ForCausalLM, config.text_config, PUBLISHED_TEXT),
        "model.vq_adaptor.layers.0.weight": (HIDDEN, TIME_MERGE * HIDDEN),
        "model.vq_adaptor.layers.0.bias": (HIDDEN,),
        "model.vq_adaptor.layers.2.weight": (HIDDEN, HIDDEN),
        "model.vq_adaptor.layers.2.bias": (HIDDEN,),
        "model.vq_adaptor.layers.3.weight": (HIDDEN,),
        "model.vq_adaptor.layers.3.bias": (HIDDEN,),
    }
    del shapes["lm_head.weight"]  # published as embed_tokens only
    weights = random_weights(shapes, seed=seed, dtype=dtype)
    weights["model.whisper_encoder.embed_positions.weight"] = sinusoids(
        POSITIONS, HIDDEN
    ).to(dtype)
    for name, tensor in weights.items():
        # Sharper attention to the audio than random weights give, so that an answer
        # depends on it.
        if name.endswith("self_attn.q_norm.weight"):
            tensor *= 4
    # It is the output layer too: large rows would answer with the token before.
    embed_tokens = weights["model.language_model.embed_tokens.weight"]
    embed_tokens *= 0.05
    answer_in_visible_characters(embed_tokens, vocab)

    generation_config = qwen_generation_config(vocab)
    path = save_checkpoint(
        path,
        parts=[config, generation_config, WhisperFeatureExtractor(), _tokenizer(vocab)],
        weights=weights,
    )
    (path / f"{PROCESSOR_MODULE}.py").write_text(PROCESSOR_CODE)
    name = "MossTranscribeDiarizeProcessor"
    processor_config = {
        "processor_class": name,
        "auto_map": {"AutoProcessor": f"{PROCESSOR_MODULE}.{name}"},
        "audio_tokens_per_second": 12.5,
        "audio_merge_size": TIME_MERGE,
        "time_marker_every_seconds": 5,
    }
    (path / "processor_config.json").write_text(json.dumps(processor_config, indent=2))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return path


def moss_transcribe_diarize_prompt(text: str = "", *, audios: int = 1) -> str:
    """Returns what the chat template makes of one user turn: audio, then text.

    Args:
        text: the user's words.
        audios: the model hears at most one at a time in vLLM.
    """
    placeholders = "<|audio_start|><|audio_pad|><|audio_end|>" * audios
    return f"<|im_start|>user\n{placeholders}{text}<|im_end|>\n<|im_start|>assistant\n"


def load_hf_moss_transcribe_diarize_encoder(
    path: Path | str, *, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """Returns Hugging Face's Whisper encoder with these weights.

    Called with log-mel features [items, 80, 3000] it gives `.last_hidden_state` [items,
    1500, hidden].

    Args:
        path: a directory that `tiny_moss_transcribe_diarize` wrote.
        dtype: parameters are converted to it.

    Raises:
        RuntimeError: if a parameter is missing or left over, or a shape differs.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoder
    from vllm.transformers_utils.configs.moss_transcribe_diarize import (
        MossTranscribeDiarizeConfig,
    )

    config = MossTranscribeDiarizeConfig.from_pretrained(path).audio_config
    weights = read_weights(path, "model.whisper_encoder.")
    return hf_encoder(WhisperEncoder, config, weights, dtype)


def _config(vocab: dict[str, int], depth: int, dtype: torch.dtype) -> Any:
    from vllm.transformers_utils.configs.moss_transcribe_diarize import (
        MossTranscribeDiarizeConfig,
    )

    end = vocab["<|endoftext|>"]
    return MossTranscribeDiarizeConfig(
        architectures=["MossTranscribeDiarizeForConditionalGeneration"],
        text_config={
            "vocab_size": VOCAB_SIZE,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "bos_token_id": end,
            "eos_token_id": vocab["<|im_end|>"],
            "pad_token_id": end,
        },
        audio_config={
            "num_mel_bins": 80,
            "d_model": HIDDEN,
            "encoder_layers": depth,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 4 * HIDDEN,
            "max_source_positions": POSITIONS,
            "vocab_size": VOCAB_SIZE,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "decoder_start_token_id": end,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        audio_token_id=vocab["<|audio_pad|>"],
        audio_merge_size=TIME_MERGE,
        tie_word_embeddings=True,
        dtype=dtype,
    )


def _tokenizer(vocab: dict[str, int]) -> Any:
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
    )
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    return tokenizer
