# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the processor that is published with Kimi-VL."""

from transformers import BatchFeature, ProcessorMixin


class KimiVLProcessor(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **_):
        self.image_token = "<|media_pad|>"
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, return_tensors=None, **kwargs):
        data = {}
        texts = [text] if isinstance(text, str) else list(text)
        if images is not None:
            data = dict(self.image_processor(images, return_tensors="pt"))
            rows, columns = self.image_processor.merge_kernel_size
            for height, width in data["image_grid_hws"].tolist():
                count = height * width // (rows * columns)
                found = next(i for i, x in enumerate(texts) if self.image_token in x)
                texts[found] = texts[found].replace(
                    self.image_token, "<|placeholder|>" * count, 1
                )
            texts = [x.replace("<|placeholder|>", self.image_token) for x in texts]
        return BatchFeature(
            {**self.tokenizer(texts), **data}, tensor_type=return_tensors
        )
