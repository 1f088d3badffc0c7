# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""MiniCPM-o's audio attends to padding. Exit status 0: it does not.

vLLM's method, around an encoder that keeps the mask that it is given.
"""

import sys
from types import SimpleNamespace

import torch
from torch import nn
from vllm.model_executor.models.minicpmo import MiniCPMOBaseModel


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(80, 8, 3)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        self.mask = attention_mask
        hidden = torch.zeros(len(x), attention_mask.shape[-1], 8)
        return SimpleNamespace(hidden_states=[hidden])


def main() -> int:
    model = MiniCPMOBaseModel.__new__(MiniCPMOBaseModel)
    if isinstance(model, nn.Module):
        nn.Module.__init__(model)
    model.config = SimpleNamespace(audio_chunk_length=0, audio_pool_step=5)
    model.apm, model.audio_encoder_layer = Encoder(), 0
    model.audio_projection_layer = nn.Identity()
    model.audio_avg_pooler = nn.AvgPool1d(5, stride=5)
    frames = [60, 200]  # 30 and 100 positions after the convolutions
    with torch.inference_mode():
        model.get_audio_hidden_states(
            {
                "audio_features": [torch.zeros(80, n) for n in frames],
                "audio_feature_lens": [torch.tensor([n]) for n in frames],
            }
        )
    seen = (model.apm.mask[:, 0, 0] == 0).sum(-1).tolist()
    print(f"clips of 30 and 100 positions attend to {seen[0]} and {seen[1]}")
    return int(seen != [30, 100])


if __name__ == "__main__":
    sys.exit(main())
