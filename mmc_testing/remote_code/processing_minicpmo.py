# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Stands in for the image processor that is published with MiniCPM-o.

It tells how many tokens a picture has, but takes none.
"""

from transformers.image_processing_utils import BaseImageProcessor


class MiniCPMVImageProcessor(BaseImageProcessor):
    def __init__(self, max_slice_nums=9, image_feature_size=64, version=2.6, **kwargs):
        super().__init__(**kwargs)
        self.max_slice_nums = max_slice_nums
        self.image_feature_size = image_feature_size
        self.version = version

    def get_sliced_grid(self, image_size, max_slice_nums, nerver_split=False):
        return None

    def get_slice_image_placeholder(
        self, image_size, image_idx=0, max_slice_nums=None, use_image_id=None
    ):
        return "<image>" + "<unk>" * self.image_feature_size + "</image>"

    def preprocess(self, images, **kwargs):
        raise NotImplementedError("this checkpoint hears, but does not see")
