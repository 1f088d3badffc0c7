# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""No encoder makes the host wait for the device inside of its layers."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.multimodal.utils import group_and_batch_mm_kwargs

from mmc_testing.as_on_cuda import as_on_cuda
from mmc_testing.checkpoints import FAMILIES
from mmc_testing.engine import load_model, process_items, stock_class, tower_context
from mmc_testing.fake_device import DEVICE, FakeDevice, WaitsForDevice, fake_device
from mmc_testing.parity import assert_close
from vllm_mmc.catalog import CATALOG
from vllm_mmc.demo.writer import Recipe

# One architecture for each file of a model or mixin.
ENTRIES = {entry.mixin or entry.model: entry for entry in reversed(CATALOG)}


def cases() -> Iterator[Any]:
    for target, entry in ENTRIES.items():
        spec = find_spec(target.partition(":")[0])
        assert spec is not None and spec.origin is not None
        # The others have Whisper's layers.
        has_layers = "@support_torch_compile" in Path(spec.origin).read_text()
        yield pytest.param(
            entry.family,
            id=entry.family,
            marks=() if has_layers else pytest.mark.slow,
        )


def embeddings(
    checkpoint: Path, device: FakeDevice, recipe: Recipe, **context: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What an encoder makes on the device, and what it makes on the CPU."""
    items = min(recipe.samples, key=lambda items: (len(items), items))
    with tower_context(checkpoint, **{**recipe.engine_args, **context}) as vllm_config:
        model = load_model(vllm_config)
        model._to_survey = {}  # a second encoder's regions stay eager
        given = process_items(vllm_config, recipe.request(items))

        def embed(to: torch.device | None) -> torch.Tensor:
            ((_, _, inputs),) = group_and_batch_mm_kwargs(given, device=to)
            return torch.cat(list(device.get(model.embed_multimodal(**inputs))))

        with torch.inference_mode():
            for module in model.modules():
                if hasattr(module, "do_not_compile"):
                    module.do_not_compile = True
            expected = embed(None)
            device.take(model)
            return embed(DEVICE), expected


@pytest.mark.forked
@pytest.mark.parametrize("family", cases())
def test_of_family(family: str, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(family)
    with as_on_cuda(), fake_device() as device:
        found, expected = embeddings(
            checkpoint, device, FAMILIES[family], compile_mm_encoder=True
        )
    assert_close("embeddings", found, expected, ratio=1e-6)
    # Before the layers vLLM's own code may ask for lengths, and ours may, once.
    ours = [line.split(":")[0] for line in device.waits if line.startswith("vllm_mmc.")]
    assert ours in ([], ["vllm_mmc.encoder.packed"])


@pytest.mark.forked
def test_stock_waits_in_each_layer(qwen3_asr: Path) -> None:
    """What ours do not, and what the test above would see."""
    stock = stock_class("Qwen3ASRForConditionalGeneration")
    with as_on_cuda(), fake_device() as device:
        embeddings(qwen3_asr, device, FAMILIES["qwen3_asr"], **stock)
    layers = [line for line in device.waits if "vit_attn_wrappers" in line]
    assert len(layers) == 4, device.waits


WAITS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "item": lambda x, i: i[0].item(),
    "bool": lambda x, i: bool((x > 0).any()),
    "tolist": lambda x, i: i.tolist(),
    "numpy": lambda x, i: i.numpy(),
    "mask": lambda x, i: x[x > 0],
    "assignment by mask": lambda x, i: x.__setitem__(x > 0, 0.0),
    "nonzero": lambda x, i: x.nonzero(),
    "unique": lambda x, i: i.unique(),
    "repeat_interleave": lambda x, i: torch.repeat_interleave(i),
    "equal": lambda x, i: torch.equal(x, x),
    "range": lambda x, i: range(i[0]),
    "slice": lambda x, i: x[: i[0]],
    "to the host": lambda x, i: x.cpu(),
    "to the host, later": lambda x, i: x.to("cpu", non_blocking=True),
    "from the host": lambda x, i: torch.ones(3).to(x.device),
    "from the host, later": lambda x, i: torch.ones(3).to(x.device, non_blocking=True),
    "a list": lambda x, i: torch.tensor([1, 2], device=x.device),
    "list as index": lambda x, i: x[[1, 2]],
    "index on the host": lambda x, i: x[torch.tensor([1, 2])],
    "host and device": lambda x, i: x + torch.ones(8, 4),
}
FINE: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "index": lambda x, i: x[i],
    "slice": lambda x, i: x[1:] - x[:-1],
    "number": lambda x, i: x * torch.tensor(2.0),
    "in place": lambda x, i: x[:2].add_(1),
    "index_fill_": lambda x, i: x.index_fill_(0, i, 0),
    "arange": lambda x, i: torch.arange(4, device=x.device),
    "where": lambda x, i: torch.where(x > 0, x, 0),
}


@pytest.mark.forked
@pytest.mark.parametrize("inference", [True, False])
def test_what_is_seen(inference: bool) -> None:
    """Under inference mode, operators come to the detector before they are taken
    apart."""
    with fake_device() as device, torch.inference_mode(inference):
        for name, call in WAITS.items():
            x, i = device.put((torch.randn(8, 4), torch.tensor([1, 2, 0])))
            with device.layers(), pytest.raises(WaitsForDevice):
                call(x, i)
                pytest.fail(name)
        for call in FINE.values():
            values = torch.randn(8, 4), torch.tensor([1, 2, 0])
            on_device = device.put(tuple(x.clone() for x in values))
            with device.layers():
                found = call(*on_device)
            assert torch.equal(device.get(found), call(*values))
            assert torch.equal(device.get(on_device[0]), values[0])
        assert not device.waits
