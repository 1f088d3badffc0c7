# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Ways to run one encoder, with the same weights, in one process."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mmc.prove.cases import Case
from vllm_mmc.prove.parity import allowance, rms_ratio

EAGER = "stock eager"
DEFAULT = "stock default"
COMPILED = "stock compiled"
OURS = "ours"
FLOOR = "floor"


@dataclass
class Provider:
    """One way to run the encoder: a tower, and the config that it was built with."""

    name: str
    case: Case
    tower: Any
    vllm_config: Any
    graphs: int = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """What a worker of this config has set while it runs."""
        import torch
        import vllm.ir

        wrap = self.vllm_config.compilation_config.ir_enable_torch_wrap
        priority = self.vllm_config.kernel_config.ir_op_priority
        with (
            torch.inference_mode(),
            priority.set_priority(),
            vllm.ir.enable_torch_wrap(wrap),
        ):
            yield

    def __call__(self, inputs: tuple[Any, ...]) -> Any:
        with self.active():
            return self.case.call(self.tower, *inputs)


@contextlib.contextmanager
def single_process(config: Any) -> Iterator[None]:
    """Makes this process vLLM's only worker, for its life."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.platforms import current_platform

    with tempfile.TemporaryDirectory() as directory, set_current_vllm_config(config):
        init_distributed_environment(
            world_size=1,
            rank=0,
            local_rank=0,
            distributed_init_method=f"file://{directory}/rendezvous",
            backend=current_platform.dist_backend,
        )
        ensure_model_parallel_initialized(1, 1)
        try:
            yield
        finally:
            cleanup_dist_env_and_memory()


def config_for(case: Case, checkpoint: Path, dtype: str, **compilation: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_mmc.demo.engine import default_engine_args

    engine_args = default_engine_args(
        checkpoint, dtype=dtype, compilation_config=compilation, **case.engine_args
    )
    # Towers get normalised pixels. vLLM 0.26 knows no others.
    if hasattr(EngineArgs, "mm_device_do_normalize"):
        engine_args["mm_device_do_normalize"] = False
    return EngineArgs(**engine_args).create_engine_config()


def provider(case: Case, name: str, target: str, config: Any, dtype: str) -> Provider:
    from vllm.config import set_current_vllm_config

    from vllm_mmc.prove import towers

    with set_current_vllm_config(config):
        tower = towers.build(case, target, config, dtype)
    return Provider(name, case, tower, config)


def providers(case: Case, checkpoint: Path, dtype: str) -> list[Provider]:
    """Builds a tower per provider.

    - stock eager: nothing is compiled (vLLM's mode 0, `--enforce-eager`).
    - stock default: vLLM as it starts, compile_mm_encoder off. The text model is
      compiled, and in the encoder the activation alone.
    - stock compiled, ours: the same with compile_mm_encoder on. The first of them only
      if vLLM compiles this encoder.
    """
    eager = config_for(case, checkpoint, dtype, mode=0, compile_mm_encoder=False)
    off, on, on_too = (
        config_for(case, checkpoint, dtype, compile_mm_encoder=switch)
        for switch in (False, True, True)
    )
    found = [
        provider(case, EAGER, case.stock, eager, dtype),
        provider(case, DEFAULT, case.stock, off, dtype),
        provider(case, OURS, case.ours, on_too, dtype),
    ]
    if case.stock_compiles:
        found.insert(2, provider(case, COMPILED, case.stock, on, dtype))
    return found


def native(case: Case, checkpoint: Path, dtype: str) -> Provider:
    """Builds an eager encoder of vLLM's layers, whose products are the floor's.

    They are in float32 if the CPU multiplies that faster than `dtype`.
    """
    import torch

    from vllm_mmc.layers.upcast import needs_upcast

    product_dtype = "float32" if needs_upcast(getattr(torch, dtype)) else dtype
    config = config_for(
        case, checkpoint, product_dtype, mode=0, compile_mm_encoder=False
    )
    target = case.stock if case.stock_is_native else case.ours
    return provider(case, FLOOR, target, config, dtype)


# ---------------------------------------------------------------- are they equal?


def check(
    given: list[Provider], truth: Any, inputs: tuple[Any, ...], size: int
) -> list[dict[str, Any]]:
    """Calls each provider once and compares it with the float32 encoder.

    Raises:
        RuntimeError: if something compiles that must not, or the other way round.
    """
    from torch._dynamo.utils import counters as dynamo
    from vllm.compilation.counter import compilation_counter

    rows = []
    for provider in given:
        graphs = compilation_counter.num_aot_compiles
        frames = dynamo["frames"]["total"]
        output = provider(inputs)
        graphs = compilation_counter.num_aot_compiles - graphs
        provider.graphs += graphs
        if provider.name == EAGER:
            reference = output
            if graphs or dynamo["frames"]["total"] != frames:
                raise RuntimeError(f"{EAGER} compiled something")
        compiles = provider.name in (COMPILED, OURS)
        if compiles != bool(provider.graphs):
            raise RuntimeError(f"{provider.name} compiled {provider.graphs} graphs")
        allowed = allowance(reference=reference, truth=truth)
        to_truth = rms_ratio(output, truth)
        rows.append(
            {
                "provider": provider.name,
                "size": size,
                "equal": to_truth <= allowed,
                "rms_to_truth": to_truth,
                "rms_to_eager": rms_ratio(output, reference),
                "rms_allowed": allowed,
                "graphs": provider.graphs,
                "graphs_this_size": graphs,
            }
        )
    return rows
