# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What a tiny encoder tower is, and what the lists of them share.

A tower is one of vLLM's or Hugging Face's encoder classes with three or four layers of
width 64, and the sizes to call it at. `towers.TOWERS` has all of them.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import tower_context
from tests.encoder import stand_ins

# What a tower is called with: positional and keyword arguments.
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Size = tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    """One call of a tower. Its tensors are made anew, and equal, every time.

    Attributes:
        make: returns the arguments for a size.
        size: what `make` takes.
    """

    make: Callable[..., Inputs]
    size: Size

    def __str__(self) -> str:
        return "-".join(str(part).replace(" ", "") for part in self.size)

    def inputs(self) -> Inputs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make(*self.size)


@dataclass(frozen=True)
class Sizes:
    """The sizes a tower is called at.

    Attributes:
        survey: the largest, the smallest, and one in between, as a survey calls it.
        further: sizes of service, most of which the survey has not seen.
    """

    survey: Sequence[Size]
    further: Sequence[Size]


@dataclass(frozen=True)
class Tower:
    """A tiny encoder.

    Attributes:
        build: makes the module, in a `tower_config`, of a dtype (float32), in eval
            mode, with random weights that differ from layer to layer.
        survey: three calls: the largest, the smallest, and one in between.
        further: eight or more calls, most of sizes that the survey has not seen.
        blocks: for each class of repeated blocks, how many of its instances have
            another of equal structure.
        graphs: how many graphs all calls together need at most, those of the repeated
            blocks and those of single modules beside them.
    """

    build: Callable[..., nn.Module]
    survey: Sequence[Call]
    further: Sequence[Call]
    blocks: Mapping[str, int]
    graphs: int


class Towers(dict[str, Tower]):
    """Towers by name."""

    def add(
        self,
        make: Callable[..., Inputs],
        sizes: Sizes,
        blocks: Mapping[str, int],
        graphs: int,
    ) -> Callable[[Callable[[VllmConfig], nn.Module]], Callable[..., nn.Module]]:
        """Adds the function below as a tower of its name.

        Args:
            make: returns the arguments for a size.
            sizes: what `make` takes.
            blocks: as in `Tower`.
            graphs: as in `Tower`.
        """

        def decorate(
            construct: Callable[[VllmConfig], nn.Module],
        ) -> Callable[..., nn.Module]:
            @functools.wraps(construct)
            def build(
                vllm_config: VllmConfig, dtype: torch.dtype = torch.float32
            ) -> nn.Module:
                with set_default_torch_dtype(dtype):
                    return prepare(construct(vllm_config))

            self[construct.__name__] = Tower(
                build,
                survey=[Call(make, size) for size in sizes.survey],
                further=[Call(make, size) for size in sizes.further],
                blocks=blocks,
                graphs=graphs,
            )
            return construct

        return decorate


@contextlib.contextmanager
def tower_config(*, compile_mm_encoder: bool = False) -> Iterator[VllmConfig]:
    """Makes this process one in which towers can be built and run.

    The model of the config is the tiny Qwen2.5-VL, which most towers never look at;
    its weights are not loaded. Any number of towers can be built in one config.

    Args:
        compile_mm_encoder: as in vLLM's compilation config; with it the mode on CPU is
            DYNAMO_TRACE_ONCE, which VLLM_COMPILE becomes there.
    """
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = FAMILIES["qwen2_5_vl"].write(Path(directory), depth=2)
        with (
            tower_context(
                checkpoint, compile_mm_encoder=compile_mm_encoder
            ) as vllm_config,
            stand_ins.flash_attention(),
        ):
            yield vllm_config


def run(
    module: nn.Module, call: Call, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Returns the tensors that a module answers a call with, in inference mode."""
    with torch.inference_mode():
        args, kwargs = tree_map_only(
            torch.Tensor,
            lambda x: x.to(dtype) if x.is_floating_point() else x,
            call.inputs(),
        )
        return list(_tensors(module(*args, **kwargs)))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):  # Hugging Face's outputs are one, too
        for value in output.values():
            yield from _tensors(value)
    elif hasattr(output, "last_hidden_state"):
        yield from _tensors(output.last_hidden_state)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


# ---------------------------------------------------------------- weights


def prepare(module: nn.Module) -> nn.Module:
    """Fills a module with random weights, and makes it ready to run as vLLM does."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.is_floating_point():
            parameter.data = _weight(name, parameter, generator)
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):  # of a batch norm
            noise = torch.randn(buffer.shape, generator=generator)
            buffer.copy_(buffer + 0.1 * noise.abs())
        elif buffer.is_floating_point() and buffer.isinf().any() and not buffer.ndim:
            buffer.copy_(buffer.clamp(-3, 3))  # a bound; without, it bounds nothing
    module.eval()
    model_config = get_current_vllm_config().model_config
    process_weights_after_loading(module, model_config, torch.device("cpu"))
    return module


def _weight(
    name: str, parameter: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Returns weights that keep a signal's size, so that every layer counts.

    Norms and scales are around 1, biases around 0, and products keep the variance.
    """
    noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    if parameter.ndim < 2:
        return 0.1 * noise + (0 if name.endswith("bias") else 1)
    return noise * parameter[0].numel() ** -0.5


def without_onednn(module: nn.Module, *linears: nn.Module) -> nn.Module:
    """Returns the module, some linear layers of which shall use PyTorch's product.

    vLLM's binding of oneDNN refuses an input whose last dimension is not the dense one
    ("Expected a.stride(-1) == 1"), with which these towers end in stock vLLM on CPU.
    """
    for linear in linears:
        linear._cpu_skip_gemm_dispatch = True
    return module


# ---------------------------------------------------------------- configs

# One shape for all: three layers of width 64, four heads. By the names Hugging Face's
# vision configs have, those of Qwen's, and those of Whisper's.
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
IMAGE = VISION | {"image_size": 112, "patch_size": 14}
QWEN: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 4,
    "out_hidden_size": 96,
}
WHISPER: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "num_mel_bins": 80,
    "max_source_positions": 100,
}


def config(**attributes: Any) -> PreTrainedConfig:
    """Returns a config of just these attributes, for what has no class of its own."""
    made = PreTrainedConfig()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def with_model(vllm_config: VllmConfig, hf_config: PreTrainedConfig) -> VllmConfig:
    """Returns the config of an engine whose model has this Hugging Face config."""
    # The architecture is not looked at: it has to be one that vLLM knows.
    return vllm_config.with_hf_config(hf_config, architectures=["UltravoxModel"])


# ---------------------------------------------------------------- sizes


def each(*sizes: Any) -> list[Size]:
    """Returns sizes that are of one number each."""
    return [(size,) for size in sizes]


BATCHES = Sizes(survey=each(8, 1, 3), further=each(2, 4, 5, 6, 7, 1, 9, 12))

# (frames, height, width) of each item, in patches.
IMAGE_GRIDS = Sizes(
    survey=[
        ((1, 16, 24), (1, 8, 12)),
        ((1, 4, 4),),
        ((1, 8, 8), (1, 4, 8), (1, 6, 10)),
    ],
    further=[
        ((1, 4, 4),),
        ((1, 8, 12),),
        ((1, 6, 6), (1, 6, 6)),
        ((1, 16, 16),),
        ((1, 4, 6), (1, 4, 6), (1, 8, 8), (1, 12, 4)),
        ((1, 10, 14),),
        ((1, 2, 2),),
        ((1, 2, 8), (1, 14, 2)),
    ],
)
GRIDS = Sizes(
    IMAGE_GRIDS.survey,
    [*IMAGE_GRIDS.further, ((2, 4, 8),), ((1, 4, 4), (3, 8, 8))],
)
# (height, width) of each item, in patches; odd ones too.
PLANES = Sizes(
    survey=[((16, 12), (8, 8)), ((4, 4),), ((4, 6), (8, 8), (6, 6))],
    further=[
        ((4, 4),),
        ((8, 6),),
        ((2, 2),),
        ((4, 4), (4, 4)),
        ((6, 10), (2, 4), (8, 8), (3, 5)),
        ((12, 12),),
        ((7, 9),),
        ((1, 3), (5, 2)),
    ],
)
# (height, width) of each item, in pixels.
PIXELS = Sizes(
    survey=[((256, 192), (64, 96)), ((32, 32),), ((64, 96), (32, 64), (48, 48))],
    further=[
        ((32, 32),),
        ((64, 64),),
        ((32, 48), (32, 48)),
        ((128, 128),),
        ((16, 16),),
        ((64, 32), (48, 80), (32, 32), (96, 96)),
        ((112, 144),),
        ((16, 80), (144, 16)),
    ],
)
# Frames of each clip; a batch is as long as its longest.
CLIPS = Sizes(
    survey=[(300, 120, 55), (40,), (130, 64)],
    further=[
        (130,),
        (200, 120),
        (150, 60, 99),
        (48,),
        (192,),
        (96, 20, 50, 90),
        (36,),
        (77, 77),
    ],
)


# ---------------------------------------------------------------- inputs


def images(*shape: int) -> Callable[[int], Inputs]:
    """Returns what makes batches of one tensor, for example images of one size."""
    return lambda batch: ((torch.randn(batch, *shape),), {})


def patches(
    width: int, *, grids: Callable[[list[list[int]]], Any] = list
) -> Callable[..., Inputs]:
    """Returns what makes the flattened patches of items, and their grids.

    Args:
        width: values of one patch.
        grids: makes the grids what the tower wants, from a list of lists.
    """

    def make(*items: tuple[int, int, int]) -> Inputs:
        total = sum(t * h * w for t, h, w in items)
        return (torch.randn(total, width), grids([list(item) for item in items])), {}

    return make


def pixel_lists(*items: tuple[int, int]) -> Inputs:
    """Returns a list of images of different sizes."""
    return ([torch.randn(3, h, w) for h, w in items],), {}


def cumulative(lengths: Sequence[int]) -> torch.Tensor:
    """Returns where each sequence of a packed batch starts, and where the last ends."""
    return nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


def keep_mask(frames: int, lengths: Sequence[int]) -> torch.Tensor:
    """Returns which frames of a padded batch are of a clip."""
    return torch.arange(frames) < torch.tensor(lengths)[:, None]


def padding_bias(frames: int, lengths: Sequence[int]) -> torch.Tensor:
    """Returns 0 for a key of a clip and -inf for padding, for every query."""
    padding = ~keep_mask(frames, lengths)[:, None, None, :]
    bias = torch.zeros(len(lengths), 1, frames, frames)
    return bias.masked_fill(padding, float("-inf"))


def mel_batches(mels: int, *, frames_first: bool = False) -> Callable[..., Inputs]:
    """Returns what makes a padded batch of spectrograms, and its clips' lengths.

    Args:
        mels: channels of a spectrogram.
        frames_first: [clip, frame, channel] instead of [clip, channel, frame].
    """

    def make(*lengths: int) -> Inputs:
        shape = (max(lengths), mels) if frames_first else (mels, max(lengths))
        return (torch.randn(len(lengths), *shape), torch.tensor(lengths)), {}

    return make
