# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""NaN in what a request brings is refused; NaN that an encoder makes becomes zeros."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.config import VllmConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalProcessorOnlyCache

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import (
    embed_inputs,
    load_model,
    process_items,
    stock_class,
    tower_context,
)
from mmc_testing.logs import warnings_of
from mmc_testing.recipes import RECIPES
from vllm_mmc.demo import media
from vllm_mmc.encoder import finite
from vllm_mmc.encoder.finite import LARGEST, FiniteEmbeddings, largest

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_at_any_place_is_found(dtype: torch.dtype, value: float) -> None:
    for size in (1, 7, 64, 1_000):
        for place in {0, size // 2, size - 1}:
            x = torch.linspace(-2, 1, size).to(dtype)
            assert largest(x) == 2
            x[place] = value
            assert not largest(x) <= LARGEST
            assert not largest(torch.stack([torch.zeros_like(x), x]).T) <= LARGEST
    assert largest(torch.empty(0, 8, dtype=dtype)) == 0


# === Embeddings === #


def two_items() -> list[torch.Tensor]:
    x = torch.randn(7, 8)
    x[2, 3], x[5] = float("nan"), float("inf")
    return [torch.randn(5, 8), x]


def zeroed(x: torch.Tensor) -> torch.Tensor:
    expected = x.clone()
    expected[[2, 5]] = 0
    return expected


def test_rows_become_zeros_and_the_rest_stays() -> None:
    check = FiniteEmbeddings("Model")
    with warnings_of(finite) as warnings:
        good, bad = two_items()
        assert check([good], ["pixel_values"])[0] is good
        assert check(good[None], ["pixel_values"]).shape == (1, 5, 8)
        assert not warnings
        for _ in range(2):
            for form in (list, tuple):
                found = check(form([good, bad]), ["pixel_values", "image_grid_thw"])
                assert type(found) is form and found[0] is good
                torch.testing.assert_close(found[1], zeroed(bad), rtol=0, atol=0)
        assert torch.equal(check(bad[None], ["audio_features"]), zeroed(bad)[None])
    images, audio = warnings
    assert "Model: the encoder made NaN or infinite" in images
    assert "of pixel_values, image_grid_thw. Zeros" in images
    assert "of audio_features. Zeros" in audio


class Elsewhere(torch.Tensor):
    """A tensor of which the host says that it is on another device."""

    is_cpu = property(lambda self: False)


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_on_another_device_the_host_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrived = False

    class Event:
        def record(self) -> None: ...
        def query(self) -> bool:
            return arrived

    monkeypatch.setattr(torch, "Event", Event)
    check = FiniteEmbeddings("Elsewhere")
    items = [x.as_subclass(Elsewhere) for x in two_items()]
    with warnings_of(finite) as warnings:
        with NoWaiting():
            good, bad = check(items, ["pixel_values"])
            check(items[:1], ["audio_features"])
        assert torch.equal(good, items[0])
        assert torch.equal(bad, zeroed(items[1].as_subclass(torch.Tensor)))
        assert not warnings
        arrived = True
        check([], ["audio_features"])
    (warning,) = warnings
    assert "Elsewhere: " in warning and "pixel_values" in warning


# === What requests bring, through the processors of real models === #


def write(name: str, folder: Path) -> Path:
    return (FAMILIES.get(name) or RECIPES[name]).write(folder / name)


Opened = Callable[..., Any]


@pytest.fixture(params=["qwen2_5_vl", "llava_siglip", "qwen2_audio", "whisper"])
def model(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, VllmConfig]]:
    name = request.param
    known = FAMILIES.get(name) or RECIPES[name]
    with tower_context(
        write(name, tmp_path), **known.engine_args, enable_mm_embeds=True
    ) as config:
        yield name, config


def asked(name: str, **data: Any) -> dict[str, Any]:
    known = FAMILIES.get(name) or RECIPES[name]
    ((modality, items),) = data.items()
    count = {"image": {"images": 1}, "audio": {"audios": 1}, "video": {"videos": 1}}
    return {
        "prompt": known.prompt("?", **count[modality]),
        "multi_modal_data": {modality: items},
    }


def picture(value: float = 0.0) -> np.ndarray:
    pixels = np.asarray(media.photograph_at(84, 56)).astype(np.float32)
    pixels[3, 4, 1] += value
    return pixels


def given_as_embeddings(name: str, value: float, hidden: int) -> dict[str, Any]:
    x = torch.zeros(1, 6, hidden)
    x[0, 3, 5] = value
    if name == "qwen2_5_vl":
        grid = torch.tensor([[1, 4, 6]])
        return {"image": {"image_embeds": x[0], "image_grid_thw": grid}}
    return {"audio" if name == "qwen2_audio" else "image": x}


def test_features_and_embeddings_are_checked(model: tuple[str, VllmConfig]) -> None:
    name, config = model

    def process(**data: Any) -> list[Any]:
        return process_items(config, asked(name, **data))

    hidden = config.model_config.get_inputs_embeds_size()
    if name != "whisper":  # it takes no embeddings
        assert process(**given_as_embeddings(name, 1.0, hidden))
    if name in ("qwen2_5_vl", "llava_siglip"):
        assert process(image=picture())
        for value in (np.nan, np.inf, 1e30):
            with pytest.raises(ValueError, match="image 0 must become .* pixel_values"):
                process(image=picture(value))
            with pytest.raises(ValueError, match="image 0 must become .* image_embeds"):
                process(**given_as_embeddings(name, value, hidden))
        return
    quiet = media.speech(1.0)
    assert process(audio=quiet)
    # Whatever makes the features, here an option that a request may set.
    with pytest.MonkeyPatch.context() as patch:
        extractor = "transformers.models.whisper.feature_extraction_whisper"
        patch.setattr(
            f"{extractor}.WhisperFeatureExtractor._np_extract_fbank_features",
            lambda self, waves, device: np.full((len(waves), 80, 3000), np.inf),
        )
        patch.setattr(
            f"{extractor}.WhisperFeatureExtractor._torch_extract_fbank_features",
            lambda self, waves, device: np.full((len(waves), 80, 3000), np.inf),
        )
        with pytest.raises(ValueError, match="audio 0 must become .* input_features"):
            process(audio=quiet * 0.5)
    if name == "qwen2_audio":
        with pytest.raises(ValueError, match="audio 0 must become .* audio_embeds"):
            process(**given_as_embeddings(name, np.nan, hidden))


def test_videos_are_checked(qwen2_5_vl: Path) -> None:
    frames = np.stack([picture()] * 4)
    about = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    bad = frames.copy()
    bad[2, 1, 1, 0] = np.nan
    with tower_context(qwen2_5_vl, enable_mm_embeds=True) as config:
        embeds = {
            "video_embeds": torch.full(
                (6, config.model_config.get_inputs_embeds_size()), torch.nan
            ),
            "video_grid_thw": torch.tensor([[1, 4, 6]]),
        }
        prompt = "<|vision_start|><|video_pad|><|vision_end|>"

        def process(video: Any) -> Any:
            request = {"prompt": prompt, "multi_modal_data": {"video": video}}
            return process_items(config, request)

        assert process((frames, about))
        with pytest.raises(ValueError, match="video 0 .* found nan in its pixel_val"):
            process((bad, about))
        with pytest.raises(ValueError, match="video 0 .* found nan in its video_emb"):
            process(embeds)


def test_refused_items_are_not_kept_in_the_cache(qwen2_5_vl: Path) -> None:
    with tower_context(qwen2_5_vl) as config:
        processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        cache = MultiModalProcessorOnlyCache(config.model_config)

        def process(*images: Any) -> Any:
            items = processor.info.parse_mm_data({"image": list(images)})
            prompt = FAMILIES["qwen2_5_vl"].prompt("?", images=len(images))
            return processor(prompt, mm_items=items, cache=cache)

        process(picture())
        for _ in range(2):
            # The first is in the cache, so the second is the first that is processed.
            with pytest.raises(ValueError, match="image 1 must become finite values"):
                process(picture(), picture(np.nan))
        process(picture(), picture(7.0))


def test_the_setting_switches_it_off(
    qwen2_5_vl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_MMC_FINITE_CHECK", "0")
    with tower_context(qwen2_5_vl) as config:
        inputs = embed_inputs(config, [asked("qwen2_5_vl", image=picture(np.nan))])
        assert inputs["pixel_values"].isnan().any()
        embeddings = load_model(config).embed_multimodal(**inputs)
        assert embeddings[0].isnan().any()


def test_an_encoder_that_makes_nan(qwen2_5_vl: Path) -> None:
    """Zeros for the item, bit-equal embeddings for the others."""
    requests = [
        asked("qwen2_5_vl", image=media.photograph_at(84, 56)),
        asked("qwen2_5_vl", image=picture()),
    ]
    stock = stock_class("Qwen2_5_VLForConditionalGeneration")
    with tower_context(qwen2_5_vl, **stock) as config, torch.inference_mode():
        inputs = embed_inputs(config, requests)
        theirs = load_model(config).embed_multimodal(**inputs)
    with tower_context(qwen2_5_vl) as config, torch.inference_mode():
        model = load_model(config)
        for ours, good in zip(model.embed_multimodal(**inputs), theirs, strict=True):
            assert torch.equal(ours, good)
        inputs["pixel_values"][-1] = torch.nan  # of the second picture
        with warnings_of(finite) as warnings:
            first, second = model.embed_multimodal(**inputs)
        assert torch.equal(first, theirs[0])
        assert second.isfinite().all() and (second == 0).all(-1).any()
        (warning,) = warnings
        assert "Qwen2_5_VL" in warning and "pixel_values" in warning

        # As vLLM's encoder CUDA graphs hand them over.
        bad = torch.full_like(first, torch.nan)
        items: dict[int, Any] = {}
        rows = [len(first), len(bad)]
        model.postprocess_encoder_output(
            {"default": torch.cat([theirs[0], bad])}, [1, 0], rows, items, clone=True
        )
        assert torch.equal(items[1], theirs[0]) and not items[0].any()


def test_a_model_that_embeds_by_itself(kimi_audio: Path) -> None:
    """Ours encodes clips of any lengths, where stock's takes equal ones only."""
    args = {"compile_mm_encoder": True, **FAMILIES["kimi_audio"].engine_args}
    with tower_context(kimi_audio, **args) as config, torch.inference_mode():
        inputs = embed_inputs(config, [FAMILIES["kimi_audio"].request([1.0])])
        model = load_model(config)
        FAMILIES["kimi_audio"].mend_model(model)
        (good,) = model.embed_multimodal(**inputs)
        assert good.isfinite().all()
        inputs["whisper_input_features"][0][...] = torch.nan
        with warnings_of(finite) as warnings:
            (zeros,) = model.embed_multimodal(**inputs)
    assert zeros.shape == good.shape and not zeros.any()
    (warning,) = warnings
    assert "Kimi" in warning and "whisper_input_features" in warning
