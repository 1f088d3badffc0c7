# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Kimi-Audio answers one request per step. Exit status 0: it answers two.

vLLM's methods of the model, around a toy encoder, projector and table of embeddings.
"""

import sys

import torch
from torch import nn
from vllm.model_executor.models.kimi_audio import KimiAudioForConditionalGeneration


class Tower(nn.Module):
    def forward(self, clips: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([clip.T for clip in clips])


def main() -> int:
    model = KimiAudioForConditionalGeneration.__new__(KimiAudioForConditionalGeneration)
    nn.Module.__init__(model)
    model.audio_tower, model.multi_modal_projector = Tower(), nn.Identity()
    model.language_model = nn.Module()
    model.language_model.model = nn.Module()
    model.language_model.model.embed_tokens = nn.Embedding(10, 16)
    said = []
    with torch.inference_mode():
        clips = [torch.randn(4, 8), torch.randn(4, 12)]
        try:
            found = model.embed_multimodal(whisper_input_features=clips)
            right = [list(clip.shape) for clip in found] == [[2, 16], [3, 16]]
        except AttributeError as error:
            right = False
            said.append(f"two lengths raise AttributeError: {error}")
        else:
            said.append(f"two lengths are {'right' if right else 'wrong'}")

        tokens, audio = torch.tensor([1, 2, 2, 1, 1, 2, 2]), torch.randn(2, 2, 16)
        found = model.embed_input_ids(tokens, list(audio), is_multimodal=tokens == 2)[
            tokens == 2
        ].view(2, 2, 16)
        expected = (audio + model.language_model.model.embed_tokens.weight[2]) * 2**0.5
        heard = [torch.allclose(*pair) for pair in zip(found, expected, strict=True)]
        said.append(f"of two clips, heard: {sum(heard)}")
    print("; ".join(said))
    return int(not (right and all(heard)))


if __name__ == "__main__":
    sys.exit(main())
