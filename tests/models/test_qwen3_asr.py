# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What is Qwen3-ASR's own; the rest is in test_audio.py."""

from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from transformers.models.qwen3_asr import Qwen3ASRFeatureExtractor

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, stock_class, tower_context
from mmc_testing.parity import assert_close, rms_ratio
from vllm_mmc.demo import media

STOCK = stock_class("Qwen3ASRForConditionalGeneration")
FAMILY = FAMILIES["qwen3_asr"]


def features(seconds: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """[clips, 128, frames] of real speech, and which frames are not padding.

    Each clip's are its own, as vLLM has them, and padding is zero.
    """
    extract = Qwen3ASRFeatureExtractor()
    found = [
        extract(
            media.speech(s),
            sampling_rate=media.SPEECH_RATE,
            padding="longest",
            return_attention_mask=True,
        )
        for s in seconds
    ]
    mel, mask = (
        nn.utils.rnn.pad_sequence([clip[name][0].T for clip in found], True)
        for name in ("input_features", "attention_mask")
    )
    return mel.transpose(1, 2), mask


def inputs(seconds: tuple[float, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As vLLM's processor hands them to the model."""
    mel, mask = features(seconds)
    return {
        "input_audio_features": mel.transpose(1, 2)[mask.bool()].T.to(dtype),
        "audio_feature_lengths": mask.sum(-1),
        "feature_attention_mask": mask,
    }


def context(checkpoint: Path, dtype: torch.dtype = torch.float32, **args: Any) -> Any:
    name = str(dtype).removeprefix("torch.")
    return tower_context(checkpoint, dtype=name, **{**FAMILY.engine_args, **args})


def test_a_short_clip_does_not_depend_on_its_batch(qwen3_asr: Path) -> None:
    """Stock's does: alone, it is not padded to a whole chunk."""
    hf = FAMILY.hf_encoders["audio"](qwen3_asr)
    batch = (0.6, 3.0)
    found = []
    for args in (STOCK, {"compile_mm_encoder": True}):
        with context(qwen3_asr, **args) as vllm_config, torch.inference_mode():
            model = load_model(vllm_config)
            (alone,) = model.embed_multimodal(**inputs(batch[:1], torch.float32))
            among, _ = model.embed_multimodal(**inputs(batch, torch.float32))
            found.append((alone, among))
    expected = hf(*features(batch[:1]))
    (stock_alone, stock_among), (alone, among) = found
    # Products of another height add up in another order.
    assert_close("alone", alone, expected, ratio=2e-5)
    assert_close("among others", among, expected, ratio=2e-5)
    assert_close("stock, among others", stock_among, expected, ratio=2e-5)
    assert rms_ratio(stock_alone, expected) > 1e-4


def test_metadata(qwen3_asr: Path) -> None:
    """As many tokens as vLLM's processor makes room for, in windows of at most 104."""
    from vllm.model_executor.models.qwen3_asr import _get_feat_extract_output_lengths

    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        encoder = load_model(vllm_config).audio_tower
        for frames in (1, 7, 8, 9, 99, 100, 101, 799, 800, 801, 3001):
            lengths = torch.tensor([frames, 250, frames])
            metadata = encoder.prepare_encoder_metadata(lengths)
            expected = _get_feat_extract_output_lengths(lengths).tolist()
            assert encoder.embeddings(lengths) == expected
            bounds, frames = metadata["cu_seqlens"], metadata["frames"]
            assert len(metadata["tokens"]) == bounds[-1] == sum(expected)
            assert metadata["max_seqlen"] == bounds.diff().max() <= 104
            used = frames[frames >= 0]
            assert torch.equal(used.sort().values, torch.arange(int(lengths.sum())))
