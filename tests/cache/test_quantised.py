# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Regions of a quantised model are kept: all of vLLM's quantisation configs mean the
same in every process.

Each layer of a quantised model holds the config of the whole model, also where the
encoder itself is not quantised.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn as nn
from vllm.config.quantization import _ONLINE_SHORTHANDS
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization import (
    QUANTIZATION_METHODS,
    get_quantization_config,
)
from vllm.model_executor.layers.quantization.online.base import (
    OnlineQuantizationConfig,
)

from tests.encoder.tower import tower_config
from vllm_mmc.compilation.structure import Structure, structure_of

AWQ: dict[str, Any] = {"bits": 4, "group_size": 128, "zero_point": True}
AWQ |= {"modules_to_not_convert": ["visual"]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
GPTQ |= {"desc_act": False, "sym": True, "dynamic": {"-:visual.*": {}}}
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FP8 |= {"ignored_layers": ["visual"]}
FP8_BLOCKS = FP8 | {"weight_block_size": [128, 128]}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
COMPRESSED_TENSORS = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:visual.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}
QUARK_INT8 = {"dtype": "int8", "is_dynamic": False, "symmetric": True}
QUARK = {
    "quant_method": "quark",
    "export": {"kv_cache_group": [], "pack_method": "reorder"},
    "exclude": ["visual"],
    "layer_quant_config": {},
    "layer_type_quant_config": {},
    "global_quant_config": {
        "weight": QUARK_INT8 | {"qscheme": "per_channel", "ch_axis": 0},
        "input_tensors": QUARK_INT8 | {"qscheme": "per_tensor"},
        "output_tensors": None,
        "bias": None,
    },
}
FP_QUANT = {"hadamard_group_size": 32, "forward_dtype": "mxfp4"}
FP_QUANT |= {"forward_method": "abs_max", "modules_to_not_convert": ["visual"]}
INC: dict[str, Any] = {"bits": 4, "group_size": 128, "sym": True}
INC |= {"packing_format": "auto_round:auto_gptq"}


def modelopt(algorithm: str) -> dict[str, Any]:
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "kv_cache_quant_algo": None,
        "group_size": 16,
        "exclude_modules": ["visual*"],
        "quantized_layers": {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}},
    }


# `quantization_config` of a checkpoint.
CONFIGS: dict[str, dict[str, Any]] = {
    "auto_awq": AWQ,
    "auto_gptq": GPTQ,
    "awq": AWQ,
    "awq_marlin": AWQ,
    "compressed-tensors": COMPRESSED_TENSORS,
    "deepseek_v4_fp8": FP8_BLOCKS,
    "experts_int8": {},
    "fbgemm_fp8": {"modules_to_not_convert": ["visual"], "activation_scale_ub": 1200.0},
    "fp8": FP8,
    "fp_quant": FP_QUANT,
    "gptq": GPTQ,
    "gptq_marlin": GPTQ,
    "gpt_oss_mxfp4": {},
    "humming": {"quant_method": "humming"},
    "inc": INC,
    "modelopt": modelopt("FP8"),
    "modelopt_fp4": modelopt("NVFP4"),
    "modelopt_mixed": modelopt("MIXED_PRECISION"),
    "modelopt_mxfp8": modelopt("MXFP8"),
    "moe_wna16": GPTQ,
    "mxfp4": {},
    "mxfp8": modelopt("MXFP8"),
    "quark": QUARK,
}
# (torchao is a package of its own.)
METHODS = [name for name in QUANTIZATION_METHODS if name != "torchao"]


def structure(method: str) -> Structure:
    """Of a region that holds such a config, and layers of it where this CPU has them.

    Call it in a `tower_config`.
    """
    config_class = get_quantization_config(method)
    if config_class is OnlineQuantizationConfig:
        shorthand = _ONLINE_SHORTHANDS.get(method)
        config = config_class(shorthand or _ONLINE_SHORTHANDS["fp8_per_tensor"])
    else:
        config = config_class.from_config(CONFIGS[method])
    region = nn.Module()
    region.quant_config = config
    for name in ("visual", "language"):
        with contextlib.suppress(Exception):  # kernels of a GPU, or of other CPUs
            layer = ReplicatedLinear(
                *(128, 128),
                quant_config=config,
                prefix=f"{name}.fc1",
                params_dtype=torch.bfloat16,
            )
            region.add_module(name, layer)
    return structure_of(region)


def digests() -> dict[str, str]:
    with tower_config():
        return {method: structure(method).digest for method in METHODS}


@pytest.fixture(autouse=True, scope="module")
def config() -> Iterator[None]:
    with tower_config():
        yield


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """The digests in a fresh process with other hashes."""
    code = f"import json, {__name__} as m; print(json.dumps(m.digests()))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("method", METHODS)
def test_it_means_the_same_in_another_process(
    method: str, elsewhere: dict[str, str]
) -> None:
    here = structure(method)
    assert here.unportable == ()
    assert here.digest == elsewhere[method]


def test_layers_are_among_them() -> None:
    """Quantised, and not."""
    described = repr(structure("compressed-tensors").description)
    assert "UnquantizedLinearMethod" in described
    assert "CompressedTensorsLinearMethod" in described
