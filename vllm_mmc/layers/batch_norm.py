# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Batch norm of an encoder, which serves any number of items with one graph."""

import torch
import torch.nn as nn


class BatchNorm1d(nn.BatchNorm1d):
    """[N, C, L] -> [N, C, L], by the running statistics, as `nn.BatchNorm1d.eval()`.

    `F.batch_norm` first asks whether its input is empty. A graph cannot answer that for
    an unknown number of items, and would be made once for one item and once for more.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistics = self.running_mean, self.running_var
        return torch.native_batch_norm(
            x, self.weight, self.bias, *statistics, False, 0.0, self.eps
        )[0]
