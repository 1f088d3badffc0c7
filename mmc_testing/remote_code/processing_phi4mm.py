# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the processor that is published with Phi-4-multimodal."""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BatchFeature, ProcessorMixin
from transformers.audio_utils import mel_filter_bank, spectrogram

CROP, PATCH = 448, 14


class Phi4MMImageProcessor:
    """Each picture as one small crop, and as up to `dynamic_hd` crops of its parts."""

    dynamic_hd = 4

    def find_closest_aspect_ratio(self, aspect_ratio, target_ratios, *_):
        return min(target_ratios, key=lambda r: abs(aspect_ratio - r[0] / r[1]))

    def __call__(self, images):
        found = [self.crops(image.convert("RGB")) for image in images]
        most = max(len(pixels) for pixels, _, _ in found)
        return {
            "input_image_embeds": torch.stack([_padded(f[0], most) for f in found]),
            "image_attention_mask": torch.stack([_padded(f[1], most) for f in found]),
            "image_sizes": torch.tensor([size for _, _, size in found]),
        }

    def crops(self, image):
        columns, rows = (-(-side // CROP) for side in image.size)
        if columns * rows > self.dynamic_hd:
            most = range(1, self.dynamic_hd + 1)
            ratios = [(i, j) for i in most for j in most if i * j <= self.dynamic_hd]
            ratio = image.width / image.height
            columns, rows = self.find_closest_aspect_ratio(ratio, ratios)
        width, height = columns * CROP, rows * CROP
        scale = min(width / image.width, height / image.height)
        wide = width / image.width < height / image.height
        size = (
            (width, int(image.height * scale))
            if wide
            else (int(image.width * scale), height)
        )
        pixels = np.asarray(image.resize(size), dtype=np.float32) / 127.5 - 1
        x = torch.from_numpy(pixels).permute(2, 0, 1)
        x = F.pad(x, (0, width - size[0], 0, height - size[1]), value=1.0)
        side = CROP // PATCH
        mask = torch.ones(rows * side, columns * side)
        for dim, padding in ((0, height - size[1]), (1, width - size[0])):
            if padding >= PATCH:
                kept = mask.shape[dim] - padding // PATCH
                mask.narrow(dim, kept, mask.shape[dim] - kept).zero_()
        whole = F.interpolate(x[None], (CROP, CROP), mode="bicubic")
        parts = x.unflatten(2, (columns, CROP)).unflatten(1, (rows, CROP))
        parts = parts.permute(1, 3, 0, 2, 4).flatten(0, 1)
        masks = mask.unflatten(1, (columns, side)).unflatten(0, (rows, side))
        masks = masks.transpose(1, 2).flatten(0, 1)
        return (
            torch.cat([whole, parts]),
            torch.cat([torch.ones(1, side, side), masks]),
            (height, width),
        )


def _padded(x, length):
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


class Phi4MMAudioFeatureExtractor:
    """Log-mel frames of 25 ms, one each 10 ms."""

    sampling_rate = 16000
    filters = mel_filter_bank(257, 80, 0.0, 8000.0, 16000)

    def __call__(self, audios):
        clips = [torch.from_numpy(self.frames(samples)) for samples, _ in audios]
        return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)

    def frames(self, samples):
        mel = spectrogram(
            np.asarray(samples, dtype=np.float64),
            np.hamming(400),
            frame_length=400,
            hop_length=160,
            fft_length=512,
            center=False,
            mel_filters=self.filters,
            mel_floor=1e-6,
            log_mel="log",
        )
        return mel.T.astype(np.float32)


class Phi4MMProcessor(ProcessorMixin):
    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer=None, chat_template=None, **_):
        self.image_processor = Phi4MMImageProcessor()
        self.audio_processor = Phi4MMAudioFeatureExtractor()
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(
        self, text=None, images=None, audios=None, return_tensors=None, **kwargs
    ):
        data = {"image_sizes": torch.tensor([])}
        if images:
            data |= self.image_processor(images)
        if audios:
            data["input_audio_embeds"] = self.audio_processor(audios)
        texts = [text] if isinstance(text, str) else list(text)
        return BatchFeature({**self.tokenizer(texts), **data})
