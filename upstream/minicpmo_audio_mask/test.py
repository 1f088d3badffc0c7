# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/model_executor/test_minicpmo.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from vllm.model_executor.models.minicpmo import MiniCPMOBaseModel


class RecordingEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(80, 8, 3)

    def forward(self, x, attention_mask):
        self.mask = attention_mask
        hidden = torch.zeros(len(x), attention_mask.shape[-1], 8)
        return SimpleNamespace(hidden_states=[hidden])


@pytest.mark.parametrize("frames", [[60, 200], [200, 60, 199], [100]])
@pytest.mark.parametrize("chunk_length", [0, 1])
def test_audio_does_not_attend_to_padding(frames, chunk_length):
    """The mask counts positions after the convolutions, of which there are half."""
    model = MiniCPMOBaseModel.__new__(MiniCPMOBaseModel)
    if isinstance(model, nn.Module):
        nn.Module.__init__(model)
    model.config = SimpleNamespace(audio_chunk_length=chunk_length, audio_pool_step=5)
    model.apm = RecordingEncoder()
    model.audio_encoder_layer = 0
    model.audio_projection_layer = nn.Identity()
    model.audio_avg_pooler = nn.AvgPool1d(5, stride=5)
    model.get_audio_hidden_states(
        {
            "audio_features": [torch.zeros(80, n) for n in frames],
            "audio_feature_lens": [torch.tensor([n]) for n in frames],
        }
    )
    last_query = model.apm.mask[:, 0, -1]
    assert (last_query == 0).sum(-1).tolist() == [(n + 1) // 2 for n in frames]
