# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the image processor that is published with Kimi-VL."""

import math

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class KimiVLImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def __init__(
        self, patch_size=14, in_token_limit=4096, merge_kernel_size=(2, 2), **kwargs
    ):
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.in_token_limit = in_token_limit
        self.merge_kernel_size = list(merge_kernel_size)

    def _patches(self, image):
        patch = self.patch_size
        width, height = image.size
        count = (width // patch) * (height // patch)
        if count > self.in_token_limit:
            scale = math.sqrt(self.in_token_limit / count)
            width, height = int(width * scale), int(height * scale)
            image = image.resize((width, height), Image.BICUBIC)
        rows, columns = (patch * size for size in self.merge_kernel_size)
        values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        values = values / 127.5 - 1
        padding = (0, -width % columns, 0, -height % rows)
        values = torch.nn.functional.pad(values, padding, value=-1.0)
        patches = values.unfold(1, patch, patch).unfold(2, patch, patch)
        grid = patches.shape[1:3]
        return patches.permute(1, 2, 0, 3, 4).reshape(-1, 3, patch, patch), grid

    def preprocess(self, images, return_tensors=None, **kwargs):
        images = images if isinstance(images, (list, tuple)) else [images]
        found = [self._patches(image) for image in images]
        data = {
            "pixel_values": torch.cat([patches for patches, _ in found]),
            "image_grid_hws": torch.tensor([list(grid) for _, grid in found]),
        }
        return BatchFeature(data, tensor_type=return_tensors)
