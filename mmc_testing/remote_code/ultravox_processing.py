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
