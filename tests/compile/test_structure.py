# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Two instances share a compiled function only if nothing but weights differs.

Near-twins are real blocks of one Qwen2.5-VL tower: equal as loaded, then changed in
one respect.
"""

import copy
import functools
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from pydantic_core import PydanticUndefined

from mmc_testing.engine import load_model, tower_context
from vllm_mmc.cache.explain import differences
from vllm_mmc.compilation.structure import structure_of


@pytest.fixture(scope="module")
def blocks(qwen2_5_vl: Path) -> Iterator[nn.ModuleList]:
    with tower_context(qwen2_5_vl, compile_mm_encoder=True) as vllm_config:
        yield load_model(vllm_config).visual.blocks


@pytest.fixture
def twins(blocks: nn.ModuleList) -> tuple[nn.Module, nn.Module]:
    """Two blocks of equal structure that a test may change."""
    # One memo: what the two blocks share, their copies share.
    memo: dict[int, object] = {}
    return copy.deepcopy(blocks[0], memo), copy.deepcopy(blocks[1], memo)


def digest(module: nn.Module) -> str:
    return structure_of(module).digest


def test_blocks_of_a_tower_are_of_one_structure(blocks: nn.ModuleList) -> None:
    structures = [structure_of(block) for block in blocks]
    assert len({s.digest for s in structures}) == 1
    assert all(s.portable for s in structures)
    # They do differ, in weights and in names.
    assert not torch.equal(blocks[0].norm1.weight, blocks[1].norm1.weight)
    assert blocks[0].attn.qkv.prefix != blocks[1].attn.qkv.prefix


def test_copies_keep_the_structure(twins: tuple[nn.Module, nn.Module]) -> None:
    assert digest(twins[0]) == digest(twins[1])


def _float64_norm(block: nn.Module) -> None:
    block.norm1.weight.data = block.norm1.weight.data.double()


def _strided_norm(block: nn.Module) -> None:
    size = block.norm1.weight.numel()
    block.norm1.weight.data = torch.ones(2 * size)[::2]


def _longer_bias(block: nn.Module) -> None:
    block.attn.proj.bias.data = torch.cat([block.attn.proj.bias.data] * 2)


def _layer_norm(block: nn.Module) -> None:
    block.norm2 = nn.LayerNorm(block.norm2.weight.numel())


def _other_quant_method(block: nn.Module) -> None:
    method: Any = type(block.attn.qkv.quant_method)

    class Requantised(method):
        pass

    block.attn.qkv.quant_method = Requantised()


def _quant_method_attribute(block: nn.Module) -> None:
    block.attn.qkv.quant_method.per_channel = True


def _other_cpu_linear(block: nn.Module) -> None:
    block.mlp.down_proj.cpu_linear = lambda x, weight, bias: F.linear(x, weight)


def _closure(block: nn.Module) -> None:
    handler = block.mlp.down_proj.cpu_linear.__closure__[0].cell_contents
    handler.n += 1


def _own_forward(block: nn.Module) -> None:
    forward = type(block).forward
    block.forward = types.MethodType(lambda self, *args: forward(self, *args), block)


def _hook(block: nn.Module) -> None:
    block.mlp.register_forward_hook(lambda module, args, output: output * 2)


def _tied(block: nn.Module) -> None:
    block.norm2.weight = block.norm1.weight


def _same_name_other_code(block: nn.Module) -> None:
    base = type(block)

    def forward(self: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
        return base.forward(self, *args, **kwargs) * 1.0

    block.__class__ = type(
        base.__name__,
        (base,),
        {
            "forward": forward,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
        },
    )


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "float attribute": lambda b: setattr(b.norm1, "variance_epsilon", 1e-5),
    "int attribute": lambda b: setattr(b.attn, "num_attention_heads_per_partition", 2),
    "nested attribute": lambda b: setattr(b.attn.attn, "scale", 0.5),
    "new attribute": lambda b: setattr(b, "gate", None),
    "list attribute": lambda b: setattr(b, "sizes", [1, 2]),
    "dict attribute": lambda b: setattr(b, "sizes", {"a": 1}),
    "enum attribute": lambda b: setattr(b, "kind", subprocess.DEVNULL),
    "training mode": lambda b: b.train(),
    "dtype": _float64_norm,
    "stride": _strided_norm,
    "shape": _longer_bias,
    "device": lambda b: b.norm1.to("meta"),
    "missing bias": lambda b: setattr(b.attn.proj, "bias", None),
    "buffer": lambda b: b.register_buffer("scale", torch.ones(1)),
    "tied weights": _tied,
    "submodule type": _layer_norm,
    "extra submodule": lambda b: b.add_module("drop", nn.Identity()),
    "activation": lambda b: setattr(b.mlp, "act_fn", nn.GELU()),
    "quantisation method": _other_quant_method,
    "quantisation attribute": _quant_method_attribute,
    "linear function": _other_cpu_linear,
    "closure": _closure,
    "forward of one instance": _own_forward,
    "hook": _hook,
    "class of the same name": _same_name_other_code,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_near_twins_differ(
    change: Callable[[nn.Module], None], twins: tuple[nn.Module, nn.Module]
) -> None:
    leader, other = twins
    change(other)
    assert digest(leader) != digest(other)
    a, b = structure_of(leader).description, structure_of(other).description
    assert next(differences(a, b), None) is not None


Act = Callable[..., object]


def test_functions_differ_by_code_closure_and_arguments() -> None:
    def module(act: Act) -> nn.Module:
        made = nn.Identity()
        made.act = act
        return made

    def times(factor: float) -> Callable[[float], float]:
        return lambda x: x * factor

    gelu = functools.partial
    equal: list[tuple[Act, Act]] = [
        (F.silu, F.silu),
        (times(2), times(2)),
        (gelu(F.gelu, approximate="tanh"), gelu(F.gelu, approximate="tanh")),
    ]
    other: list[tuple[Act, Act]] = [
        (F.silu, F.mish),
        (times(2), times(3)),
        (times(2), lambda x: x + 2),
        (gelu(F.gelu, approximate="tanh"), gelu(F.gelu, approximate="none")),
        (gelu(F.gelu), gelu(F.silu)),
    ]
    assert all(digest(module(a)) == digest(module(b)) for a, b in equal)
    assert all(digest(module(a)) != digest(module(b)) for a, b in other)


_UNSET = object()
_MISSING = object()


def test_a_default_that_means_no_argument_is_told_by_its_name() -> None:
    def module(default: object) -> nn.Module:
        def act(x: torch.Tensor, other: object = default) -> torch.Tensor:
            return x if other is _UNSET else -x

        made = nn.Identity()
        made.act = act
        return made

    unset, again, missing = (
        structure_of(module(default)) for default in (_UNSET, _UNSET, _MISSING)
    )
    assert unset.portable
    assert unset.digest == again.digest != missing.digest
    assert not structure_of(module(object())).portable


def test_a_weight_is_not_structure(twins: tuple[nn.Module, nn.Module]) -> None:
    before = digest(twins[1])
    twins[1].norm1.weight.data.mul_(3)
    assert digest(twins[1]) == before


def test_what_cannot_be_seen_is_compared_by_identity() -> None:
    def module(hidden: object) -> nn.Module:
        made = nn.Identity()
        made.hidden = hidden
        return made

    generator = torch.Generator()
    same, again = structure_of(module(generator)), structure_of(module(generator))
    other = structure_of(module(torch.Generator()))
    assert same.digest == again.digest != other.digest
    assert not same.portable
    assert same.unportable == ("hidden (torch._C.Generator)",)


def test_what_cannot_be_compared_is_named() -> None:
    lock = threading.Lock()

    def act(x: torch.Tensor, by: object = threading.Lock()) -> torch.Tensor:
        return x if lock else -x

    class Config:
        def __init__(self) -> None:
            self.schemes = {"Linear": [1, threading.Lock()]}

    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    config: Any = Config()
    module[0].quant_config = Config()
    module[1].act = act
    module[1].bound = functools.partial(config.__init__, threading.Lock())
    assert structure_of(module).unportable == (
        "0.quant_config.schemes['Linear'][1] (_thread.lock)",
        "1.act.lock (_thread.lock)",
        "1.act.by (_thread.lock)",
        "1.bound.func.__self__.schemes['Linear'][1] (_thread.lock)",
        "1.bound.args[0] (_thread.lock)",
    )


def test_the_only_instance_of_a_type_is_told_by_its_name() -> None:
    """As pydantic's value for "not given", which quantisation configs hold."""
    made = nn.Identity()
    made.scheme = {"value": PydanticUndefined}
    structure = structure_of(made)
    assert structure.portable and "PydanticUndefined" in repr(structure.description)
    made.scheme = {"value": None}
    assert structure_of(made).digest != structure.digest


def test_digests_do_not_depend_on_the_process() -> None:
    code = (
        "import torch.nn as nn\n"
        "from vllm_mmc.compilation.structure import structure_of\n"
        "layer = nn.TransformerEncoderLayer(8, 2)\n"
        "layer.names = {'a', 'b', 'c', 'd'}\n"
        "print(structure_of(layer).digest)\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": os.environ["PYTHONPATH"],
            },
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(digests) == 1


def test_tracing_leaves_the_structure_alone(
    twins: tuple[nn.Module, nn.Module],
) -> None:
    mlp = twins[0].mlp
    before = digest(mlp)
    torch.compile(mlp.forward, backend="eager")(torch.randn(4, 1, 64))
    assert digest(mlp) == before
