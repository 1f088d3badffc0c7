# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the image processor that is published with MiniCPM-V 2.6."""

import math

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class MiniCPMVImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def __init__(
        self,
        max_slice_nums=9,
        scale_resolution=448,
        patch_size=14,
        use_image_id=True,
        image_feature_size=64,
        version=2.6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.max_slice_nums = max_slice_nums
        self.scale_resolution = scale_resolution
        self.patch_size = patch_size
        self.use_image_id = use_image_id
        self.image_feature_size = image_feature_size
        self.version = version
        self.im_id_start, self.im_id_end = "<image_id>", "</image_id>"

    def get_sliced_grid(self, image_size, max_slice_nums=None, nerver_split=False):
        width, height = image_size
        most = max_slice_nums or self.max_slice_nums
        ratio = width * height / self.scale_resolution**2
        count = min(math.ceil(ratio), most)
        if count <= 1 or nerver_split:
            return None
        grids = [
            [columns, number // columns]
            for number in (count - 1, count, count + 1)
            if 1 < number <= most
            for columns in range(1, number + 1)
            if number % columns == 0
        ]
        wanted = math.log(width / height)
        return min(grids, key=lambda grid: abs(wanted - math.log(grid[0] / grid[1])))

    def get_slice_image_placeholder(
        self, image_size, image_idx=0, max_slice_nums=None, use_image_id=None
    ):
        unknown = "<unk>" * self.image_feature_size
        text = f"<image>{unknown}</image>"
        if self.use_image_id if use_image_id is None else use_image_id:
            text = f"{self.im_id_start}{image_idx}{self.im_id_end}{text}"
        grid = self.get_sliced_grid(image_size, max_slice_nums)
        if grid is None:
            return text
        row = f"<slice>{unknown}</slice>" * grid[0]
        return text + "\n".join([row] * grid[1])

    def _fit(self, size, upscale=False):
        """Returns the size, of whole patches, of about the wanted area."""
        width, height = size
        area = self.scale_resolution**2
        if width * height > area or upscale:
            ratio = width / height
            height = int(self.scale_resolution / math.sqrt(ratio))
            width = int(height * ratio)
        patch = self.patch_size
        return tuple(max(round(x / patch) * patch, patch) for x in (width, height))

    def _slices(self, image, max_slice_nums):
        grid = self.get_sliced_grid(image.size, max_slice_nums)
        found = [image.resize(self._fit(image.size), Image.BICUBIC)]
        if grid is not None:
            columns, rows = grid
            part = (image.width / columns, image.height / rows)
            width, height = self._fit(part, upscale=True)
            whole = image.resize((width * columns, height * rows), Image.BICUBIC)
            found += [
                whole.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
                for y in range(rows)
                for x in range(columns)
            ]
        return found

    def preprocess(
        self, images, do_pad=True, max_slice_nums=None, return_tensors=None, **kwargs
    ):
        if not isinstance(images, list):
            images = [images]
        if images and not isinstance(images[0], list):
            images = [images]
        pixels, sizes, grids = [], [], []
        patch = self.patch_size
        for group in images:
            slices = [
                part
                for image in group
                for part in self._slices(image.convert("RGB"), max_slice_nums)
            ]
            of_group = []
            for part in slices:
                values = torch.from_numpy(np.array(part)).permute(2, 0, 1) / 127.5 - 1
                # [3, patch, patch * patches], patch after patch
                rows = values.unfold(1, patch, patch).unfold(2, patch, patch)
                rows = rows.permute(0, 3, 1, 2, 4)
                of_group.append(rows.reshape(3, patch, -1))
            pixels.append(of_group)
            sizes.append([image.size for image in group])
            grids.append(
                torch.tensor([[p.height // patch, p.width // patch] for p in slices])
            )
        data = {"pixel_values": pixels, "image_sizes": sizes, "tgt_sizes": grids}
        return BatchFeature(data)
