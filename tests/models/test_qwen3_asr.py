# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Qwen3-ASR's compiled encoder equals Hugging Face's, and stock where stock does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from transformers.models.qwen3_asr import Qwen3ASRFeatureExtractor
from vllm.config import CompilationMode

from vllm_mmc.compilation.counters import counters
from vllm_mmc.models.qwen3_asr import (
    ENCODER_REGIONS,
    CompiledQwen3ASRForConditionalGeneration,
    CompiledQwen3OmniMoeAudioEncoder,
)
from vllm_mmc.testing import media
from vllm_mmc.testing.checkpoints import FAMILIES, load_hf_qwen3_asr_encoder
from vllm_mmc.testing.checkpoints.common import read_weights
from vllm_mmc.testing.engine import load_model, stock_class, tower_context
from vllm_mmc.testing.parity import allowance, assert_close, rms_ratio

STOCK = stock_class("Qwen3ASRForConditionalGeneration")
ARGS = FAMILIES["qwen3_asr"].engine_args
# Seconds of speech, a batch each: within a chunk, whole chunks, over several windows.
BATCHES = (
    (3.0, 30.0),
    (12.5, 0.3, 29.0, 1.0, 7.7),
    (8.0, 16.01),
    (0.6, 1.0, 0.5),
)
Outputs = list[torch.Tensor]


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


def run(model: nn.Module, dtype: torch.dtype) -> Outputs:
    with torch.inference_mode():
        return [
            torch.cat(model.embed_multimodal(**inputs(batch, dtype)))
            for batch in BATCHES
        ]


def context(checkpoint: Path, dtype: torch.dtype = torch.float32, **args: Any) -> Any:
    name = str(dtype).removeprefix("torch.")
    return tower_context(checkpoint, dtype=name, **{**ARGS, **args})


@pytest.fixture(scope="module")
def stock(qwen3_asr: Path) -> Callable[[torch.dtype], Outputs]:
    """Stock eager outputs, once per dtype."""
    made: dict[torch.dtype, Outputs] = {}

    def outputs(dtype: torch.dtype) -> Outputs:
        if dtype not in made:
            with context(qwen3_asr, dtype, **STOCK) as vllm_config:
                made[dtype] = run(load_model(vllm_config), dtype)
        return made[dtype]

    return outputs


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        # Llama4's test has this pair by default.
        pytest.param(torch.float32, 3, marks=pytest.mark.slow),
        (torch.bfloat16, 2),
    ],
    ids=["float32, mode 3", "bfloat16, mode 2"],
)
def test_equals_stock_and_hugging_face(
    dtype: torch.dtype,
    mode: int,
    qwen3_asr: Path,
    stock: Callable[[torch.dtype], Outputs],
) -> None:
    with (
        counters.expect(structures=1, graphs=1, followers=3, recompiles=0),
        context(
            qwen3_asr, dtype, compile_mm_encoder=True, mode=CompilationMode(mode)
        ) as vllm_config,
    ):
        model = load_model(vllm_config)
        assert type(model) is CompiledQwen3ASRForConditionalGeneration
        ours = run(model, dtype)
        model.warm_up_encoder()  # the first batch has compiled all of it
    hf = load_hf_qwen3_asr_encoder(qwen3_asr)
    for batch, found, truth, reference in zip(
        BATCHES, ours, stock(torch.float32), stock(dtype), strict=True
    ):
        allowed = allowance(reference=reference, truth=truth)
        assert_close(f"{batch}", found, truth, ratio=allowed, dtype=dtype)
        with torch.inference_mode():
            expected = hf(*features(batch))
        assert_close(
            f"{batch} (Hugging Face)", found, expected, ratio=allowed, dtype=dtype
        )


def test_a_short_clip_does_not_depend_on_its_batch(qwen3_asr: Path) -> None:
    """Stock's does: alone, it is not padded to a whole chunk."""
    hf = load_hf_qwen3_asr_encoder(qwen3_asr)
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


def test_a_follower_with_its_leaders_weights_would_show(
    qwen3_asr: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    """The comparison above can fail: layers are far from interchangeable."""
    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        model.audio_tower.layers[2] = model.audio_tower.layers[0]
        swapped = run(model, torch.float32)
    for found, expected in zip(swapped, stock(torch.float32), strict=True):
        assert rms_ratio(found, expected) > 100 * allowance(
            reference=expected, truth=expected
        )


def test_off_by_default_and_then_exactly_stock(
    qwen3_asr: Path, stock: Callable[[torch.dtype], Outputs]
) -> None:
    with context(qwen3_asr) as vllm_config:
        model = load_model(vllm_config)
        assert type(model) is CompiledQwen3ASRForConditionalGeneration
        assert not {type(m) for m in model.modules()} & set(ENCODER_REGIONS.values())
        with counters.expect(structures=0, graphs=0):
            ours = run(model, torch.float32)
    assert all(map(torch.equal, ours, stock(torch.float32)))


def test_nothing_is_written_into(qwen3_asr: Path) -> None:
    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        given = inputs((3.0, 1.0), torch.float32)
        tensors = [*given.values(), *model.state_dict().values(), *model.buffers()]
        before = [(tensor.clone(), tensor._version) for tensor in tensors]
        with torch.inference_mode():
            model.embed_multimodal(**given)
    for tensor, (value, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor._version == version


def test_clips_do_not_depend_on_their_neighbours(qwen3_asr: Path) -> None:
    seconds = (30.0, 0.3, 7.7, 3.0)
    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        embed = load_model(vllm_config).embed_multimodal
        with torch.inference_mode():
            together = embed(**inputs(seconds, torch.float32))
            turned = embed(**inputs(seconds[::-1], torch.float32))[::-1]
            alone = [embed(**inputs((s,), torch.float32))[0] for s in seconds]
    for index in range(len(seconds)):
        assert_close("alone", together[index], alone[index], ratio=1e-5)
        assert_close("elsewhere", together[index], turned[index], ratio=1e-5)


def test_no_request_compiles(qwen3_asr: Path) -> None:
    """After the warm-up, over twenty mixes of lengths."""
    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        model = load_model(vllm_config)
        shapes = model.audio_tower.encoder_shapes
        assert (shapes.limit, shapes.step) == (2048, 1)
        model.warm_up_encoder()
        generator = torch.Generator().manual_seed(0)
        with (
            torch.inference_mode(),
            counters.expect(graphs=0, artifact_loads=0, fallbacks=0),
        ):
            for _ in range(20):
                clips = int(torch.randint(1, 6, (), generator=generator))
                seconds = 0.3 + 29.7 * torch.rand(clips, generator=generator)
                given = inputs(tuple(seconds.tolist()), torch.float32)
                model.embed_multimodal(**given)


def test_metadata(qwen3_asr: Path) -> None:
    """As many tokens as vLLM's processor makes room for, in windows of at most 104."""
    from vllm.model_executor.models.qwen3_asr import _get_feat_extract_output_lengths

    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        encoder = load_model(vllm_config).audio_tower
        for frames in (1, 7, 8, 9, 99, 100, 101, 799, 800, 801, 3001):
            lengths = torch.tensor([frames, 250, frames])
            metadata = encoder.prepare_encoder_metadata(lengths)
            expected = _get_feat_extract_output_lengths(lengths).tolist()
            assert metadata.lengths == expected
            assert len(metadata.tokens) == metadata.cu_seqlens[-1] == sum(expected)
            assert metadata.max_seqlen == metadata.cu_seqlens.diff().max() <= 104
            used = metadata.frames[metadata.frames < lengths.sum()]
            assert torch.equal(used.sort().values, torch.arange(int(lengths.sum())))


def test_encoder_alone(qwen3_asr: Path) -> None:
    """Without an engine, so without its limit; see docs/custom-serving.md."""
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    mel, mask = features((3.0, 1.3))
    hf = load_hf_qwen3_asr_encoder(qwen3_asr)
    with context(qwen3_asr, compile_mm_encoder=True) as vllm_config:
        model_config = vllm_config.model_config
        config = model_config.hf_config.thinker_config.audio_config
        encoder = CompiledQwen3OmniMoeAudioEncoder(config)
        assert encoder.encoder_shapes.limit is None
        weights = read_weights(qwen3_asr, "thinker.audio_tower.")
        loaded = encoder.load_weights(weights.items())
        assert loaded == {name for name, _ in encoder.named_parameters()}
        process_weights_after_loading(encoder, model_config, torch.device("cpu"))
        with counters.expect(graphs=1, fallbacks=0), torch.inference_mode():
            found = encoder(mel.transpose(1, 2)[mask.bool()].T, mask.sum(-1).tolist())
            expected = hf(mel, mask)
    assert_close("embeddings", found, expected, ratio=2e-5)
