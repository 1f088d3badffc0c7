# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/model_executor/test_kimi_audio.py."""

import pytest
import torch
from torch import nn
from vllm.model_executor.models.kimi_audio import KimiAudioForConditionalGeneration


class ToyTower(nn.Module):
    """Frames become tokens: [mel, frames] of each clip -> [clips, frames, mel]."""

    def forward(self, clips):
        return torch.stack([clip.T for clip in clips])


@pytest.fixture
def model():
    model = KimiAudioForConditionalGeneration.__new__(KimiAudioForConditionalGeneration)
    nn.Module.__init__(model)
    model.audio_tower = ToyTower()
    model.multi_modal_projector = nn.Identity()
    model.language_model = nn.Module()
    model.language_model.model = nn.Module()
    model.language_model.model.embed_tokens = nn.Embedding(10, 16)
    return model.requires_grad_(False)


def test_clips_of_different_lengths(model):
    """Requests of one batch: features of different lengths come as a list."""
    clips = [torch.randn(4, frames) for frames in (8, 12, 6)]
    outs = model.embed_multimodal(whisper_input_features=clips)
    for out, clip in zip(outs, clips, strict=True):
        alone = model.embed_multimodal(whisper_input_features=clip[None])[0]
        torch.testing.assert_close(out, alone)


def test_each_clip_of_a_batch_is_heard(model):
    input_ids = torch.tensor([1, 2, 2, 1, 1, 2, 2, 2])
    clips = [torch.randn(2, 16), torch.randn(3, 16)]
    out = model.embed_input_ids(input_ids, clips, is_multimodal=input_ids == 2)
    text = model.language_model.model.embed_tokens(input_ids)
    expected = text.clone()
    expected[input_ids == 2] += torch.cat(clips)
    expected[input_ids == 2] *= 2**0.5
    torch.testing.assert_close(out, expected)
