# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Every compiled audio encoder equals stock eager and Hugging Face's."""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import sinusoids
from vllm.config import CompilationMode, VllmConfig, get_current_vllm_config
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.utils.torch_utils import set_default_torch_dtype

from mmc_testing.checkpoints import FAMILIES, voxtral
from mmc_testing.engine import (
    batch_items,
    embed_inputs,
    load_model,
    process_items,
    stock_class,
    tower_context,
)
from mmc_testing.hf_encoders import read_weights
from mmc_testing.parity import allowance, assert_close, rms_ratio
from vllm_mmc.catalog import CATALOG
from vllm_mmc.compilation.counters import counters
from vllm_mmc.demo import media
from vllm_mmc.encoder.interfaces import CompiledEncoder
from vllm_mmc.models.audioflamingo3 import CompiledAudioFlamingo3Encoder
from vllm_mmc.models.kimi_audio import (
    CompiledKimiAudioForConditionalGeneration,
    CompiledKimiAudioWhisperEncoder,
)
from vllm_mmc.models.minicpmo import CompiledMiniCPMWhisperEncoder
from vllm_mmc.models.moss_transcribe_diarize import (
    CompiledMossWhisperEncoder,
)
from vllm_mmc.models.qwen2_5_omni import CompiledQwen2_5OmniAudioEncoder
from vllm_mmc.models.qwen2_audio import CompiledQwen2AudioEncoder
from vllm_mmc.models.qwen3_asr import CompiledQwen3OmniMoeAudioEncoder
from vllm_mmc.models.ultravox import CompiledUltravoxWhisperEncoder
from vllm_mmc.models.voxtral import CompiledVoxtralWhisperEncoder
from vllm_mmc.models.whisper import (
    CompiledWhisperEncoder,
    CompiledWhisperForConditionalGeneration,
    WhisperEncoderBase,
)

Seconds = tuple[float, ...]
Inputs = dict[str, Any]
Outputs = list[list[torch.Tensor]]
# Of speech, a batch each. Among them: less than a window, whole windows, several.
BATCHES: tuple[Seconds, ...] = (
    (3.0, 30.0),
    (0.3,),
    (12.5, 0.3, 29.0, 1.0, 7.7),
    (8.0, 16.01),
)
FLOAT32, BFLOAT16 = (torch.float32, 3), (torch.bfloat16, 2)


class Audio:
    """One family: what differs from the next.

    Attributes:
        pair: dtype and compilation mode of the default run; the slow run has the other.
        batches: of `embed_multimodal`.
        stock_alone: what stock makes of a clip depends on its batch: it gets one.
        prefix: of the encoder's weights in the checkpoint.
        by_default: not slow: its encoder is no other family's.
        pictures: without one allowed, vLLM makes no room for audio.
        shapes: largest call and step of the encoder, in packed tokens, if literal.
    """

    pair = FLOAT32
    batches: Sequence[Seconds] = BATCHES
    stock_alone = False
    prefix = "audio_tower."
    by_default = True
    pictures = False
    shapes: tuple[int, int] | None = None

    def __init__(self, *, by_default: bool = True) -> None:
        self.by_default = by_default

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        """The encoder without an engine."""
        raise NotImplementedError

    def load(self, encoder: Any, weights: dict[str, torch.Tensor]) -> set[str]:
        loaded: set[str] = encoder.load_weights(weights.items())
        return loaded

    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """The encoder's, named as `load` takes them."""
        return read_weights(checkpoint, self.prefix)

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        """What the encoder makes of what `embed_multimodal` gets, clip after clip."""
        raise NotImplementedError

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        """The same of Hugging Face's."""
        raise NotImplementedError


class Whisper(Audio):
    shapes: tuple[int, int] | None = (8192 // 1500 * 1500, 1500)
    prefix = "model.encoder."

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        return CompiledWhisperEncoder(vllm_config=config)

    def load(self, encoder: Any, weights: dict[str, torch.Tensor]) -> set[str]:
        biases = {
            name.replace("weight", "bias"): torch.zeros(len(weight))
            for name, weight in weights.items()
            if name.endswith("k_proj.weight")  # vLLM's has a bias
        }
        mapper = CompiledWhisperForConditionalGeneration.hf_to_vllm_mapper
        loaded: set[str] = AutoWeightsLoader(encoder).load_weights(
            (weights | biases).items(), mapper=mapper
        )
        return loaded

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(x["input_features"]).flatten(0, 1)

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(x["input_features"]).last_hidden_state.flatten(0, 1)


class Qwen3ASR(Audio):
    shapes = (8192, 1)
    prefix = "thinker.audio_tower."
    # Stock's lone clip under a second is not padded to a whole one; see
    # test_qwen3_asr.py.
    batches = BATCHES[:1] + BATCHES[2:]

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        thinker = config.model_config.hf_config.thinker_config
        return CompiledQwen3OmniMoeAudioEncoder(thinker.audio_config)

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(x["input_audio_features"], x["audio_feature_lengths"])

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        lengths = x["audio_feature_lengths"]
        clips = x["input_audio_features"].T.split(lengths.tolist())
        mel = nn.utils.rnn.pad_sequence(list(clips), batch_first=True).transpose(1, 2)
        mel = nn.functional.pad(mel, (0, -mel.shape[2] % 100))  # whole chunks
        return encoder(mel, torch.arange(mel.shape[2]) < lengths[:, None])


class Qwen3Omni(Qwen3ASR):
    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        lengths = x["audio_feature_lengths"]
        found = encoder(x["input_audio_features"], feature_lens=lengths)
        return found.last_hidden_state


class Qwen2_5Omni(Qwen3Omni):
    pair = BFLOAT16
    batches = BATCHES
    shapes = (3 * 8192, 1)

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        own = config.model_config.hf_config.thinker_config.audio_config
        return CompiledQwen2_5OmniAudioEncoder(vllm_config=config.with_hf_config(own))


class Qwen2Audio(Audio):
    encoder: type = CompiledQwen2AudioEncoder

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        own = config.model_config.hf_config.audio_config
        made: CompiledEncoder = self.encoder(vllm_config=config.with_hf_config(own))
        return made

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(x["input_features"], x["feature_attention_mask"].sum(-1))

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        frames = x["feature_attention_mask"].sum(-1)
        tokens, kept = encoder._get_feat_extract_output_lengths(frames)
        hidden = torch.arange(1500) >= tokens[:, None, None, None]
        mask = torch.zeros(len(frames), 1, 1500, 1500)
        mask.masked_fill_(hidden, float("-inf"))
        found = encoder(x["input_features"], attention_mask=mask).last_hidden_state
        return end_to_end(found, kept)


class AudioFlamingo3(Qwen2Audio):
    encoder = CompiledAudioFlamingo3Encoder
    # Half a minute and one sample more: a window of which nothing is left.
    batches = (*BATCHES[:2], (45.0, 3.0), (30.0001,), (12.5, 0.3, 29.0))

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        mask = x["feature_attention_mask"]
        _, kept = encoder._get_feat_extract_output_lengths(mask.sum(-1))
        return end_to_end(encoder(x["input_features"], mask).last_hidden_state, kept)


class Ultravox(Qwen2Audio):
    encoder = CompiledUltravoxWhisperEncoder
    stock_alone = True

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        tokens = (x["audio_lens"] - 1) // 2 + 1
        return end_to_end(encoder(x["audio_features"], x["audio_lens"]), tokens)

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        # A clip alone has no padding to mask.
        found = []
        for features, frames in zip(x["audio_features"], x["audio_lens"], strict=True):
            hidden = nn.functional.gelu(encoder.conv1(features[None, :, :frames]))
            hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
            hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
            for layer in encoder.layers:
                hidden = layer(hidden, None)
            found.append(encoder.layer_norm(hidden)[0])
        return torch.cat(found)


class Voxtral(Whisper):
    """Its encoder stands in another module, which makes features and loads it."""

    shapes = None

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        own = config.model_config.hf_config.audio_config
        config = config.with_hf_config(own)
        return CompiledVoxtralWhisperEncoder(vllm_config=config, init_in_fp32=True)

    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        return voxtral.hf_weights(checkpoint)

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return super().encode(encoder, self._features(encoder, x))

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return super().hugging_face(encoder, self._features(encoder, x))

    def _features(self, encoder: Any, x: Inputs) -> Inputs:
        """By Hugging Face's extractor: log-mel [items, 128, 3000]."""
        extract = WhisperFeatureExtractor(feature_size=voxtral.MEL_BINS)
        arrays = [array.float().numpy() for array in x["audio_arrays"]]
        found = extract(arrays, sampling_rate=16000, return_tensors="pt")
        features = found["input_features"].to(encoder.conv1.weight.dtype)
        return {"input_features": features}


class KimiAudio(Audio):
    stock_alone = True
    prefix = "model.encoder."

    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        return super().weights(checkpoint / "whisper-large-v3")

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        return CompiledKimiAudioWhisperEncoder(vllm_config=config)

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(list(x["whisper_input_features"]))

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        found = []
        for features in x["whisper_input_features"]:
            hidden = nn.functional.gelu(encoder.conv1(features[None]))
            hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
            hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
            for layer in encoder.layers:
                hidden = layer(hidden, None)
            hidden = encoder.layer_norm(hidden)[0]
            hidden = nn.functional.pad(hidden, (0, 0, 0, -len(hidden) % 4))
            found.append(hidden.view(-1, 4 * hidden.shape[1]))
        return torch.cat(found)


class Moss(Audio):
    prefix = "model.whisper_encoder."
    batches = (*BATCHES, (45.0, 3.0))

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        return CompiledMossWhisperEncoder(vllm_config=config)

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(x["input_features"], x["audio_feature_lengths"])[0]

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        found = encoder(x["input_features"]).last_hidden_state
        return end_to_end(found, x["audio_feature_lengths"] * 4)


class MiniCPMO(Audio):
    stock_alone = True
    pictures = True
    shapes = (9 * 8192, 1)
    batches = (*BATCHES, (45.0,))
    prefix = "apm."

    def alone(self, config: VllmConfig) -> CompiledEncoder:
        config = config.with_hf_config(config.model_config.hf_config.audio_config)
        return CompiledMiniCPMWhisperEncoder(vllm_config=config)

    def encode(self, encoder: Any, x: Inputs) -> torch.Tensor:
        return encoder(list(x["audio_features"]), 1.0)

    def hugging_face(self, encoder: Any, x: Inputs) -> torch.Tensor:
        found = []
        for features in x["audio_features"]:
            hidden = nn.functional.gelu(encoder.conv1(features[None]))
            hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
            hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
            second = torch.arange(hidden.shape[1]) // 50
            heard = (second[None, :] <= second[:, None])[None, None]
            for layer in encoder.layers:
                hidden = layer(hidden, torch.where(heard, 0.0, -torch.inf))
            found.append(encoder.layer_norm(hidden)[0])
        return torch.cat(found)


def end_to_end(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[clips, positions, width], so many of each -> [kept, width]."""
    return torch.cat([clip[:n] for clip, n in zip(x, kept.tolist(), strict=True)])


AUDIO = {
    "whisper": Whisper(),
    "ultravox": Ultravox(by_default=False),
    "voxtral": Voxtral(by_default=False),
    "kimi_audio": KimiAudio(by_default=False),
    "moss_transcribe_diarize": Moss(by_default=False),
    "minicpmo": MiniCPMO(),
    "qwen3_asr": Qwen3ASR(),
    "qwen3_asr_realtime": Qwen3ASR(by_default=False),
    "qwen3_asr_forced_aligner": Qwen3ASR(by_default=False),
    "qwen3_omni": Qwen3Omni(by_default=False),
    "clef_omni": Qwen3Omni(by_default=False),
    "qwen2_5_omni": Qwen2_5Omni(),
    "qwen2_audio": Qwen2Audio(),
    "audioflamingo3": AudioFlamingo3(by_default=False),
}
CLASSES = {entry.family: entry for entry in CATALOG if entry.family in AUDIO}


@dataclass(frozen=True)
class Compiled:
    """A family's model, compiled, and what stock made of the same batches."""

    audio: Audio
    family: str
    checkpoint: Path
    config: VllmConfig
    model: nn.Module
    dtype: torch.dtype
    truth: Outputs
    stock: Outputs
    off: Outputs

    def inputs(self, seconds: Seconds) -> Inputs:
        return inputs(self.config, self.family, seconds)

    def embed(self, seconds: Seconds) -> list[torch.Tensor]:
        with torch.inference_mode():
            return list(self.model.embed_multimodal(**self.inputs(seconds)))

    @property
    def encoder(self) -> Any:
        (found,) = (m for m in self.model.modules() if isinstance(m, CompiledEncoder))
        return found


@functools.cache
def clip(family: str, seconds: float) -> Any:
    """As vLLM's processor makes it of speech; under every config the same."""
    request = FAMILIES[family].request([seconds])
    return process_items(get_current_vllm_config(), request)


def inputs(config: VllmConfig, family: str, seconds: Seconds) -> Inputs:
    """As a worker hands them to the model, in the model's dtype."""
    batch = batch_items([item for s in seconds for item in clip(family, s)])
    return in_dtype(batch, config.model_config.dtype)


def in_dtype(x: Any, dtype: torch.dtype) -> Any:
    """All tensors of floating point in it."""
    if isinstance(x, dict):
        return {name: in_dtype(value, dtype) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [in_dtype(value, dtype) for value in x]
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


def context(
    family: str, checkpoint: Path, dtype: torch.dtype = torch.float32, **args: Any
) -> Any:
    name = str(dtype).removeprefix("torch.")
    # Room for five clips of 30 s in an encoder call, and no other encoder.
    room: dict[str, Any] = {"max_num_batched_tokens": 8192}
    limits = FAMILIES[family].engine_args["limit_mm_per_prompt"]
    if "image" in limits and not AUDIO[family].pictures:
        room["limit_mm_per_prompt"] = {"audio": 2, "image": 0, "video": 0}
    return tower_context(
        checkpoint, dtype=name, **{**FAMILIES[family].engine_args, **room, **args}
    )


def run_all(
    config: VllmConfig, family: str, model: nn.Module, *, alone: bool = False
) -> Outputs:
    found = []
    for batch in AUDIO[family].batches:
        calls = [(s,) for s in batch] if alone else [batch]
        with torch.inference_mode():
            parts = [model.embed_multimodal(**inputs(config, family, c)) for c in calls]
        found.append([clip for part in parts for clip in part])
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (family, *pair),
            id=f"{family}, {pair[0]}, mode {pair[1]}",
            marks=() if pair == audio.pair and audio.by_default else pytest.mark.slow,
        )
        for family, audio in AUDIO.items()
        for pair in (FLOAT32, BFLOAT16)
    ],
)
def compiled(request: pytest.FixtureRequest) -> Iterator[Compiled]:
    family, dtype, mode = request.param
    checkpoint = request.getfixturevalue(family)
    audio = AUDIO[family]

    def of_stock(dtype: torch.dtype, *, ours: bool = False) -> Outputs:
        pinned = {} if ours else stock_class(CLASSES[family].architecture)
        with (
            counters.expect(structures=0, graphs=0),
            context(family, checkpoint, dtype, **pinned) as config,
        ):
            model = load_model(config)
            FAMILIES[family].mend_model(model)
            return run_all(config, family, model, alone=audio.stock_alone)

    stock = of_stock(dtype)
    truth = stock if dtype == torch.float32 else of_stock(torch.float32)
    off = of_stock(dtype, ours=True)
    on = {"compile_mm_encoder": True, "mode": CompilationMode(mode)}
    with context(family, checkpoint, dtype, **on) as config:
        model = load_model(config)
        yield Compiled(
            audio, family, checkpoint, config, model, dtype, truth, stock, off
        )


def test_equals_stock(compiled: Compiled) -> None:
    # MiniCPM-o has the version behind it.
    name = CLASSES[compiled.family].compiled_architecture
    assert type(compiled.model).__name__.startswith(name)
    with counters.expect(structures=1, graphs=1, followers=3, recompiles=0):
        ours = run_all(compiled.config, compiled.family, compiled.model)
        compiled.model.warm_up_encoder()  # the first batch has compiled all of it
    for batch, found, truth, reference in zip(
        compiled.audio.batches, ours, compiled.truth, compiled.stock, strict=True
    ):
        for seconds, *clip in zip(batch, found, truth, reference, strict=True):
            name = f"{seconds} s of {batch}"
            allowed = allowance(reference=clip[2], truth=clip[1])
            assert_close(name, clip[0], clip[1], ratio=allowed, dtype=compiled.dtype)


def test_off_by_default_and_then_exactly_stock(compiled: Compiled) -> None:
    for found, expected in zip(compiled.off, compiled.stock, strict=True):
        assert all(map(torch.equal, found, expected))


def test_a_follower_with_its_leaders_weights_would_show(compiled: Compiled) -> None:
    """The comparison above can fail: layers are far from interchangeable."""
    layers = compiled.encoder.layers
    own = layers[2]
    layers[2] = layers[0]
    try:
        swapped = run_all(compiled.config, compiled.family, compiled.model)
    finally:
        layers[2] = own
    for found, expected in zip(swapped, compiled.truth, strict=True):
        assert rms_ratio(torch.cat(found), torch.cat(expected)) > 0.02


def test_clips_do_not_depend_on_their_neighbours(compiled: Compiled) -> None:
    seconds = (30.0, 0.3, 7.7, 3.0)
    together = compiled.embed(seconds)
    turned = compiled.embed(seconds[::-1])[::-1]
    # Products of another height add up in another order.
    ratio = {torch.float32: 1e-5, torch.bfloat16: 8e-3}[compiled.dtype]
    for index, clip in enumerate(seconds):
        (alone,) = compiled.embed((clip,))
        assert_close("alone", together[index], alone, ratio=ratio)
        assert_close("elsewhere", together[index], turned[index], ratio=ratio)


def test_nothing_is_written_into(compiled: Compiled) -> None:
    given = compiled.inputs((3.0, 1.0))
    tensors = [x for x in given.values() if torch.is_tensor(x)]
    tensors += [*compiled.model.state_dict().values(), *compiled.model.buffers()]
    before = [tensor.clone() for tensor in tensors]
    versions = [None if t.is_inference() else t._version for t in tensors]
    with torch.inference_mode():
        compiled.model.embed_multimodal(**given)
    for tensor, value, version in zip(tensors, before, versions, strict=True):
        assert torch.equal(tensor, value)
        assert version is None or tensor._version == version


def test_no_request_compiles(compiled: Compiled) -> None:
    """After the warm-up, over twenty mixes of lengths."""
    shapes = compiled.encoder.encoder_shapes
    if compiled.audio.shapes:
        assert (shapes.limit, shapes.step) == compiled.audio.shapes
    compiled.model.warm_up_encoder()
    chance = random.Random(0)
    lengths = [0.3, *(round(chance.uniform(0.3, 30), 2) for _ in range(9)), 30.0]
    with counters.expect(graphs=0, artifact_loads=0, fallbacks=0):
        for _ in range(20):
            compiled.embed(tuple(chance.choices(lengths, k=chance.randint(1, 5))))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), r"at least \d+ samples, .* found 0"),
        (np.full(16000, np.nan, np.float32), "16000 that are NaN or infinite"),
        (np.full(16000, np.inf, np.float32), "16000 that are NaN or infinite"),
    ],
    ids=["empty", "NaN", "infinite"],
)
def test_bad_audio_is_refused(samples: Any, message: str, compiled: Compiled) -> None:
    request = FAMILIES[compiled.family].request([3.0])
    request["multi_modal_data"] = {"audio": [(samples, media.SPEECH_RATE)]}
    with pytest.raises(ValueError, match=message):
        embed_inputs(compiled.config, [request])


def test_another_rate_is_heard(compiled: Compiled) -> None:
    """Also without torchaudio, with which stock resamples."""
    request = FAMILIES[compiled.family].request([3.0])
    samples = media.speech(3.0, rate=44100)
    request["multi_modal_data"] = {"audio": [(samples, 44100)]}
    given = in_dtype(embed_inputs(compiled.config, [request]), compiled.dtype)
    with torch.inference_mode():
        found = torch.cat(list(compiled.model.embed_multimodal(**given)))
    (expected,) = compiled.embed((3.0,))
    assert found.shape == expected.shape
    # Resampled up linearly, and then down: 0.002 to 0.013 were found.
    assert rms_ratio(found, expected) < 0.05


def test_equals_hugging_face(compiled: Compiled) -> None:
    audio, family = compiled.audio, compiled.family
    encoder = FAMILIES[family].hf_encoders["audio"](compiled.checkpoint)
    for batch, truth, reference in zip(
        audio.batches, compiled.truth, compiled.stock, strict=True
    ):
        given = compiled.inputs(batch)
        exact = in_dtype(given, torch.float32)
        with torch.inference_mode():
            found = audio.encode(compiled.encoder, given)
            expected = audio.hugging_face(encoder, exact)
        allowed = allowance(reference=torch.cat(reference), truth=torch.cat(truth))
        assert_close(f"{batch}", found, expected, ratio=allowed, dtype=compiled.dtype)


def test_positions_are_exact(compiled: Compiled) -> None:
    """Also where no checkpoint has them: angles in 16 bits are wrong by radians."""
    encoder = compiled.encoder
    found = (
        encoder.embed_positions.weight
        if isinstance(encoder, WhisperEncoderBase)
        else encoder.positional_embedding.positional_embedding
    )
    with set_default_torch_dtype(torch.float32):
        exact = sinusoids(*found.shape)
    # A unit in the last place of bfloat16; float32's angles go up to 1500.
    atol = {torch.float32: 1e-3, torch.bfloat16: 2.0**-8}[found.dtype]
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=atol)


def test_encoder_alone(compiled: Compiled) -> None:
    """Without an engine, so without its limit; see docs/custom-serving.md."""
    audio, config = compiled.audio, compiled.config
    with set_default_torch_dtype(compiled.dtype):
        encoder = audio.alone(config)
    assert encoder.encoder_shapes.limit is None
    weights = audio.weights(compiled.checkpoint)
    assert audio.load(encoder, weights) == dict(encoder.named_parameters()).keys()
    process_weights_after_loading(encoder, config.model_config, torch.device("cpu"))
    given = compiled.inputs((3.0, 1.3))
    with torch.inference_mode():
        found = audio.encode(encoder, given)
        expected = audio.encode(compiled.encoder, given)
    assert torch.equal(found, expected)


def test_each_request_of_a_step_hears_its_own_clip() -> None:
    """Kimi-Audio adds audio to text itself."""
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
