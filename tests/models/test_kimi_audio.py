# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Kimi-Audio adds audio to text itself; its encoder is in test_audio.py."""

import torch
import torch.nn as nn

from vllm_mmc.models.kimi_audio import CompiledKimiAudioForConditionalGeneration


def test_each_request_of_a_step_hears_its_own_clip() -> None:
    cls = CompiledKimiAudioForConditionalGeneration
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    model.language_model = nn.Module()
    model.language_model.model = nn.Module()
    table = model.language_model.model.embed_tokens = nn.Embedding(10, 16)
    tokens = torch.tensor([1, 2, 2, 1, 1, 2, 2, 2])
    clips = [torch.randn(2, 16), torch.randn(3, 16)]
    with torch.inference_mode():
        found = model.embed_input_ids(tokens, clips, is_multimodal=tokens == 2)
        expected = table(tokens)
        expected[tokens == 2] += torch.cat(clips)
        expected[tokens == 2] *= 2**0.5
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.embed_input_ids(tokens), table(tokens))
