# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
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
