# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What is Whisper's own; the rest is in test_audio.py."""

from pathlib import Path

import torch
from transformers import WhisperFeatureExtractor

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, tower_context
from mmc_testing.parity import assert_close
from vllm_mmc.demo import media
from vllm_mmc.models.whisper import CompiledWhisperEncoder


def test_every_form_of_the_input(whisper: Path) -> None:
    """As stock: a tensor, a list of items, a list of batches, and shorter items."""
    speech = [media.speech(seconds) for seconds in (3.0, 1.0, 2.0)]
    mel = WhisperFeatureExtractor()(
        speech, sampling_rate=media.SPEECH_RATE, return_tensors="pt"
    ).input_features
    forms = [mel, list(mel), tuple(mel), [mel], [mel[:2], mel[2:]], mel[..., :1000]]
    outputs = []
    for compiled in (False, True):
        args = FAMILIES["whisper"].engine_args
        with tower_context(whisper, compile_mm_encoder=compiled, **args) as vllm_config:
            encoder = load_model(vllm_config).model.encoder
            assert isinstance(encoder, CompiledWhisperEncoder) == compiled
            with torch.inference_mode():
                outputs.append([encoder(form) for form in forms])
    for index, (expected, found) in enumerate(zip(*outputs, strict=True)):
        assert_close(f"form {index}", found, expected, ratio=2e-5)
