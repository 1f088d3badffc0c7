# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What is measured: one case per architecture, with the sizes of the published model.

`vllm-mmc prove` and the benchmarks of a checkout share the cases.

Nothing heavy is imported before a method is called.
"""

import importlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar


class Case(ABC):
    """One architecture.

    Attributes:
        arch: what `--arch` selects.
        stock: "module:Class" of vLLM's encoder.
        ours: "module:Class" of our encoder.
        unit: what input sizes are counted in.
        depths: blocks, for compile_time.py.
        first_size: of the input that compiles: small, so that seconds to the first
            output are seconds of compiling.
        forward_depth: blocks, for encoder_forward.py.
        forward_sizes: inputs, for encoder_forward.py.
        prove_sizes: inputs, for `vllm-mmc prove` on a GPU; none is left out.
        prove_depth: blocks, for the same: it ends in minutes.
        reads_lengths: the host reads the items' lengths from the device, once, before
            the encoder's layers.
        stock_compiles: vLLM compiles this encoder too, so there is a "stock compiled".
        stock_is_native: it has vLLM's layers, not Hugging Face's: their parameters
            have other names, and the floor does not know them.
        engine_args: beside `default_engine_args`.
        family: of the tiny checkpoint; by default `arch`.
        item: of a request: seconds of speech, or (width, height).
    """

    arch: ClassVar[str]
    stock: ClassVar[str]
    ours: ClassVar[str]
    unit: ClassVar[str]
    depths: ClassVar[tuple[int, ...]]
    first_size: ClassVar[int]
    forward_depth: ClassVar[int]
    forward_sizes: ClassVar[tuple[int, ...]]
    prove_sizes: ClassVar[tuple[int, ...]] = ()
    prove_depth: ClassVar[int] = 8
    reads_lengths: ClassVar[bool] = False
    stock_compiles: ClassVar[bool] = True
    stock_is_native: ClassVar[bool] = True
    engine_args: ClassVar[dict[str, Any]] = {}
    family: ClassVar[str] = ""
    item: ClassVar[Any] = 3.0

    def why_not(self) -> str | None:
        """Why this vLLM has no such encoder, in words; None if it has."""
        return None

    def recipe(self) -> Any:
        """Returns the recipe of the tiny checkpoint."""
        from vllm_mmc.demo.families import family

        return family(self.family or self.arch)

    def write_tiny(self, path: Path, *, depth: int, dtype: str) -> None:
        """Writes the tiny checkpoint."""
        import torch

        self.recipe().write(path, depth=depth, dtype=getattr(torch, dtype))

    @abstractmethod
    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        """Writes a directory that vLLM starts from with dummy weights.

        Args:
            path: the directory.
            depth: encoder blocks.
            dtype: of the model, as vLLM's `dtype` names it.
            blocks: "real" for blocks of the published size, "tiny" for small ones.
                Whatever is not the encoder is tiny.
        """

    @abstractmethod
    def build(self, tower_class: type, vllm_config: Any) -> Any:
        """Returns the encoder, built as vLLM's model class builds it."""

    def shapes(self, tower: Any, vllm_config: Any) -> dict[str, tuple[int, ...]]:
        """Returns the parameters to draw, the same for every class of encoder."""
        return {name: tuple(p.shape) for name, p in tower.named_parameters()}

    def load(self, tower: Any, weights: dict[str, Any]) -> None:
        """Gives the encoder these parameters."""
        for name, parameter in tower.named_parameters():
            parameter.copy_(weights[name])

    def call(self, tower: Any, *args: Any) -> Any:
        """Runs the encoder as vLLM's model runs it, and returns its embeddings."""
        return tower(*args)

    def graph_call(self, tower: Any, *args: Any) -> Callable[[], Any] | None:
        """Returns our encoder's call on these inputs as a CUDA graph can hold it: with
        all that the host computes done before. None if there is no such call.
        """
        return None

    @abstractmethod
    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        """Returns the arguments of one call on one item of `size` units, float32.

        Raises:
            ValueError: if no item has that size.
        """

    def request(self) -> dict[str, Any]:
        """Returns a prompt with one item, for a real engine."""
        return self.recipe().request([self.item])


class Qwen2_5_VL(Case):
    arch = "qwen2_5_vl"
    stock = "vllm.model_executor.models.qwen2_5_vl:Qwen2_5_VisionTransformer"
    ours = "vllm_mmc.models.qwen2_5_vl:CompiledQwen2_5_VisionTransformer"
    unit = "patches"
    depths = (4, 8, 32)
    first_size = 24  # 4 x 6
    forward_depth = 8
    forward_sizes = (256, 1536, 4096)
    prove_sizes = (64, 256, 1024, 4096, 16384)
    item = 224, 168

    # As published with Qwen/Qwen2.5-VL-3B-Instruct.
    REAL = {
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "out_hidden_size": 2048,
    }
    FULL_ATTENTION = (7, 15, 23, 31)

    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        import torch

        from vllm_mmc.demo.checkpoints.qwen2_5_vl import recipe

        # At most 256 patches to a picture: an engine profiles with the largest one.
        small = recipe(max_pixels=64 * 28 * 28)
        small.write(path, depth=2, dtype=getattr(torch, dtype))
        file = path / "config.json"
        config = json.loads(file.read_text())
        full = [i for i in self.FULL_ATTENTION if i < depth] or [depth - 1]
        config["vision_config"] |= {"depth": depth, "fullatt_block_indexes": full}
        # Compiled as well when an engine starts, and not what is measured.
        text = config["text_config"]
        text["num_hidden_layers"] = 1
        text["layer_types"] = text["layer_types"][:1]
        if blocks == "real":
            config["vision_config"] |= self.REAL
            # As wide as the embeddings; heads of 32, as in the tiny model.
            width = self.REAL["out_hidden_size"]
            text |= {"hidden_size": width, "num_attention_heads": width // 32}
        file.write_text(json.dumps(config, indent=2))
        return path

    def build(self, tower_class: type, vllm_config: Any) -> Any:
        config = vllm_config.model_config.hf_config
        return tower_class(
            config.vision_config,
            norm_eps=getattr(config, "rms_norm_eps", 1e-6),
            quant_config=vllm_config.quant_config,
            prefix="visual",
        )

    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        import torch

        height, width = _most_square(size, tower.spatial_merge_size)
        features = tower.patch_embed.proj.weight[0].numel()
        generator = torch.Generator().manual_seed(size)
        pixels = torch.randn(size, features, generator=generator)
        return pixels, [[1, height, width]]

    def graph_call(self, tower: Any, *args: Any) -> Callable[[], Any]:
        pixels, grid = args
        metadata = tower.prepare_encoder_metadata(grid)
        return lambda: tower(pixels, None, encoder_metadata=metadata)


class Llama4(Case):
    arch = "llama4"
    stock = "vllm.model_executor.models.mllama4:Llama4VisionModel"
    ours = "vllm_mmc.models.llama4:CompiledLlama4VisionModel"
    unit = "tiles"
    depths = (4, 8, 34)
    first_size = 2
    forward_depth = 8
    forward_sizes = (4, 1)  # stock, first called with one tile, keeps to one
    prove_sizes = (4, 1, 16)
    item = 224, 168

    # As published with meta-llama/Llama-4-Scout-17B-16E-Instruct.
    REAL = {
        "hidden_size": 1408,
        "num_attention_heads": 16,
        "intermediate_size": 5632,
        "image_size": 336,
        "patch_size": 14,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 4096,
    }

    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        self.write_tiny(path, depth=1, dtype=dtype)
        file = path / "config.json"
        config = json.loads(file.read_text())
        config["vision_config"] |= {"num_hidden_layers": depth}
        if blocks == "real":
            config["vision_config"] |= self.REAL
            for name in ("processor_config.json", "preprocessor_config.json"):
                text = (path / name).read_text()
                (path / name).write_text(text.replace(": 112", ": 336"))
        file.write_text(json.dumps(config, indent=2))
        return path

    def build(self, tower_class: type, vllm_config: Any) -> Any:
        config = vllm_config.model_config.hf_config
        tower = tower_class(config.vision_config, prefix="vision_model")
        if tower_class.__module__.startswith("vllm."):
            # With one tile vLLM's CPU linear refuses what the unfolding gives it.
            tower.patch_embedding.linear.register_forward_pre_hook(
                lambda _, args: (args[0].contiguous(),)
            )
        return tower

    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        import torch

        generator = torch.Generator().manual_seed(size)
        shape = size, tower.num_channels, tower.image_size, tower.image_size
        return (torch.randn(shape, generator=generator),)

    def graph_call(self, tower: Any, *args: Any) -> Callable[[], Any]:
        return lambda: tower(*args)  # its metadata is made on the device


def _why_not_packed() -> str | None:
    from vllm.model_executor.models.whisper import WhisperAttention

    if "cu_seqlens" in inspect.signature(WhisperAttention.forward).parameters:
        return None
    return "in this vLLM the layers of Whisper take no packed tokens"


class Whisper(Case):
    arch = "whisper"
    stock = "vllm.model_executor.models.whisper:WhisperEncoder"
    ours = "vllm_mmc.models.whisper:CompiledWhisperEncoder"
    unit = "items of 30 s"
    depths = (4, 8, 12)
    first_size = 1
    forward_depth = 12
    forward_sizes: ClassVar[tuple[int, ...]] = (1, 4)
    prove_sizes = (1, 4, 16)
    prove_depth = 12
    stock_compiles = False
    # Room for eight items in an encoder call.
    engine_args: ClassVar = {
        "limit_mm_per_prompt": {"audio": 1},
        "max_model_len": 448,
        "max_num_batched_tokens": 12000,
    }

    # As published with openai/whisper-small.
    REAL: ClassVar = {
        "d_model": 768,
        "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_attention_heads": 12,
        "num_mel_bins": 80,
    }

    def why_not(self) -> str | None:
        return _why_not_packed()

    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        self.write_tiny(path, depth=1, dtype=dtype)
        file = path / "config.json"
        config = json.loads(file.read_text())
        config |= {"encoder_layers": depth, "decoder_layers": 1}
        if blocks == "real":
            config |= self.REAL
        file.write_text(json.dumps(config, indent=2))
        return path

    def build(self, tower_class: type, vllm_config: Any) -> Any:
        return tower_class(vllm_config=vllm_config, prefix="model.encoder")

    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        import torch

        frames = tower.max_source_positions * tower.total_stride
        generator = torch.Generator().manual_seed(size)
        return (torch.randn(size, tower.num_mel_bins, frames, generator=generator),)

    def graph_call(self, tower: Any, *args: Any) -> Callable[[], Any]:
        return lambda: tower(*args)  # its metadata is made on the device


class WhisperLarge(Whisper):
    arch = "whisper_large"
    family = "whisper"
    forward_depth = 8
    forward_sizes = (4,)
    prove_depth = 8

    # As published with openai/whisper-large-v3.
    REAL: ClassVar = {
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "decoder_attention_heads": 20,
        "num_mel_bins": 128,
    }


MIXED_FRAMES = (300, 50, 2900, 730, 1250, 100, 1999, 413)  # of 10 ms, a clip each


class HuggingFaceAudio(Case):
    """An audio encoder that vLLM takes from Hugging Face, and ours does not."""

    stock_compiles = False
    stock_is_native = False
    depths = (4, 8, 32)
    first_size = 1
    forward_depth = 8

    @abstractmethod
    def audio_config(self, config: Any) -> Any:
        """Returns the encoder's part of the model's config."""

    def build(self, tower_class: type, vllm_config: Any) -> Any:
        config = self.audio_config(vllm_config.model_config.hf_config)
        if tower_class is _class(self.stock):
            return tower_class(config)
        return tower_class(vllm_config=vllm_config.with_hf_config(config))

    def shapes(self, tower: Any, vllm_config: Any) -> dict[str, tuple[int, ...]]:
        import torch

        with torch.device("meta"):
            theirs = self.build(_class(self.stock), vllm_config)
        return {name: tuple(p.shape) for name, p in theirs.named_parameters()}

    def load(self, tower: Any, weights: dict[str, Any]) -> None:
        if isinstance(tower, _class(self.ours)):
            tower.load_weights(weights.items())
        else:
            super().load(tower, weights)


class Qwen2Audio(HuggingFaceAudio):
    arch = "qwen2_audio"
    stock = "transformers.models.qwen2_audio.modeling_qwen2_audio:Qwen2AudioEncoder"
    ours = "vllm_mmc.models.qwen2_audio:CompiledQwen2AudioEncoder"
    unit = "clips (see MIXES)"
    forward_sizes = (1, 8, 103)
    prove_sizes = (1, 30)
    reads_lengths = True
    engine_args: ClassVar = {
        "limit_mm_per_prompt": {"audio": 1},
        "max_num_batched_tokens": 8192,
    }

    # As published with Qwen/Qwen2-Audio-7B-Instruct.
    REAL: ClassVar = {
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
    }
    # Frames of 10 ms; other sizes are clips of 3 s.
    MIXES: ClassVar = {103: (50, 2900, 730), 30: (3000,)}

    def why_not(self) -> str | None:
        return _why_not_packed()

    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        self.write_tiny(path, depth=1, dtype=dtype)
        file = path / "config.json"
        config = json.loads(file.read_text())
        audio = config["audio_config"]
        audio |= {"encoder_layers": depth, "num_hidden_layers": depth}
        if blocks == "real":
            audio |= self.REAL
        file.write_text(json.dumps(config, indent=2))
        return path

    def audio_config(self, config: Any) -> Any:
        return config.audio_config

    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        import torch

        frames = torch.tensor(self.MIXES.get(size, (300,) * size))
        generator = torch.Generator().manual_seed(size)
        mel = torch.randn(len(frames), 128, 3000, generator=generator)
        return mel, (torch.arange(3000) < frames[:, None]).long()

    def call(self, tower: Any, *args: Any) -> Any:
        """As the model class does, but for the projector behind the encoder."""
        from types import SimpleNamespace

        import torch
        from torch import nn
        from vllm.model_executor.models.qwen2_audio import (
            Qwen2AudioForConditionalGeneration,
        )

        features, mask = args
        if isinstance(tower, _class(self.ours)):
            return tower(features, mask.sum(-1))
        model = SimpleNamespace(audio_tower=tower, multi_modal_projector=nn.Identity())
        given = {
            "type": "audio_features",
            "input_features": features,
            "feature_attention_mask": mask,
        }
        process = Qwen2AudioForConditionalGeneration._process_audio_input
        return torch.cat(process(model, given))

    def graph_call(self, tower: Any, *args: Any) -> Callable[[], Any]:
        features, mask = args
        buffers = tower.graph_buffers(features, mask.sum(-1))
        return lambda: tower.forward_graph(buffers)


class Qwen2_5Omni(HuggingFaceAudio):
    arch = "qwen2_5_omni"
    stock = (
        "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni:Qwen2_5OmniAudioEncoder"
    )
    ours = "vllm_mmc.models.qwen2_5_omni:CompiledQwen2_5OmniAudioEncoder"
    unit = "clips of mixed length"
    forward_sizes = (8, 1)
    engine_args: ClassVar = {
        "limit_mm_per_prompt": {"audio": 1, "image": 0, "video": 0},
        "max_num_batched_tokens": 8192,
    }

    # As published with Qwen/Qwen2.5-Omni-7B.
    REAL: ClassVar = {
        "d_model": 1280,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "output_dim": 3584,
    }

    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        self.write_tiny(path, depth=2, dtype=dtype)
        _resize_thinker(path, depth, self.REAL if blocks == "real" else {})
        return path

    def audio_config(self, config: Any) -> Any:
        return config.thinker_config.audio_config

    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        import torch

        frames = torch.tensor(_mixed_frames(size))
        generator = torch.Generator().manual_seed(size)
        return torch.randn(128, int(frames.sum()), generator=generator), frames

    def call(self, tower: Any, *args: Any) -> Any:
        features, frames = args
        if isinstance(tower, _class(self.ours)):
            return tower(features, frames)
        lengths, _ = tower._get_feat_extract_output_lengths(frames)
        found = tower(features, feature_lens=frames, aftercnn_lens=lengths)
        return found.last_hidden_state


class Qwen3ASR(Case):
    arch = "qwen3_asr"
    stock = "vllm.model_executor.models.qwen3_omni_moe_thinker:Qwen3OmniMoeAudioEncoder"
    ours = "vllm_mmc.models.qwen3_asr:CompiledQwen3OmniMoeAudioEncoder"
    unit = "clips of mixed length"
    depths = (4, 8, 24)
    first_size = 1
    forward_depth = 8
    forward_sizes = (8, 1)
    stock_compiles = False
    engine_args: ClassVar = {"limit_mm_per_prompt": {"audio": 1}}

    # As published with Qwen/Qwen3-ASR-1.7B.
    REAL: ClassVar = {
        "d_model": 1024,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "downsample_hidden_size": 480,
        "output_dim": 2048,
    }

    def checkpoint(self, path: Path, *, depth: int, dtype: str, blocks: str) -> Path:
        self.write_tiny(path, depth=1, dtype=dtype)
        if blocks == "real":
            width = self.REAL["output_dim"]
            text = {"hidden_size": width, "num_attention_heads": width // 32}
            _resize_thinker(path, depth, self.REAL, text)
        else:
            _resize_thinker(path, depth, {})
        return path

    def build(self, tower_class: type, vllm_config: Any) -> Any:
        config = vllm_config.model_config.hf_config.thinker_config
        return tower_class(config.audio_config, prefix="audio_tower")

    def inputs(self, tower: Any, size: int) -> tuple[Any, ...]:
        import torch
        from vllm.model_executor.models.qwen3_asr import (
            _get_feat_extract_output_lengths,
        )

        frames = torch.tensor(_mixed_frames(size))
        generator = torch.Generator().manual_seed(size)
        mel = torch.randn(tower.num_mel_bins, int(frames.sum()), generator=generator)
        return mel, frames, _get_feat_extract_output_lengths(frames)


def _resize_thinker(
    path: Path,
    depth: int,
    audio: Mapping[str, Any],
    text: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Set the depth of a checkpoint's audio encoder, and further sizes."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    thinker = config["thinker_config"]
    thinker["audio_config"] |= {"encoder_layers": depth, "num_hidden_layers": depth}
    thinker["audio_config"] |= audio
    thinker["text_config"] |= text
    file.write_text(json.dumps(config, indent=2))


def _mixed_frames(size: int) -> tuple[int, ...]:
    """Returns the frames of each of so many clips."""
    if size > len(MIXED_FRAMES):
        raise ValueError(f"at most {len(MIXED_FRAMES)} clips")
    return MIXED_FRAMES[:size]


def _class(target: str) -> Any:
    """Returns the class that "module:Class" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _most_square(size: int, multiple: int) -> tuple[int, int]:
    """Returns height <= width, both multiples of `multiple`, with that product."""
    for height in range(int(size**0.5), 0, -1):
        width, rest = divmod(size, height)
        if not (rest or height % multiple or width % multiple):
            return height, width
    raise ValueError(f"{size} is no product of two multiples of {multiple}")


CASES: dict[str, Case] = {
    case.arch: case
    for case in (
        Qwen2_5_VL(),
        Llama4(),
        Whisper(),
        WhisperLarge(),
        Qwen3ASR(),
        Qwen2Audio(),
        Qwen2_5Omni(),
    )
}
