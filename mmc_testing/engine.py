# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Real vLLM engines, servers and configs, small and quick enough for a test."""

import contextlib
import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from vllm_mmc.demo.engine import ENGINE_ENVIRONMENT, default_engine_args, serving

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig


def stock_class(architecture: str) -> dict[str, Any]:
    """Returns the engine argument that pins vLLM's own class of an architecture.

    With it an engine or `tower_context` is stock even where a plugin is registered:
    `tower_context(checkpoint, **stock_class("Qwen2_5_VLForConditionalGeneration"))`.

    Raises:
        KeyError: if vLLM has no model of that name.
    """
    from vllm.model_executor.models.registry import _VLLM_MODELS

    module, name = _VLLM_MODELS[architecture]
    target = f"vllm.model_executor.models.{module}:{name}"
    return {"model_class_overrides": {architecture: target}}


@contextlib.contextmanager
def tower_context(
    checkpoint: Path | str,
    *,
    compile_mm_encoder: bool = False,
    mode: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    rendezvous: Path | None = None,
    **overrides: Any,
) -> "Iterator[VllmConfig]":
    """Makes this process a worker without an engine: models can be built and run.

    Inside, vLLM's current config is the one that its own `EngineArgs` makes of the
    checkpoint, and the single-rank process groups exist. On leaving, both are gone.
    Load a model with `load_model`; a config holds one model, so enter anew for another.
    Towers take normalized pixel values, as Hugging Face's do. (vLLM's default is to
    ship raw pixels and normalize in the tower: `mm_device_do_normalize=True`.)

    Args:
        checkpoint: directory of a tiny checkpoint.
        compile_mm_encoder: as in vLLM's compilation config.
        mode: a `CompilationMode`; by default NONE without `compile_mm_encoder` and
            vLLM's choice with it. On CPU vLLM turns VLLM_COMPILE (3) into
            DYNAMO_TRACE_ONCE (2); asked for here, 3 is kept, with the passes that need
            a GPU left out, so that the path of a GPU can be walked on a CPU.
        rank: of this process among the tensor-parallel ones.
        world_size: how many tensor-parallel processes there are.
        rendezvous: a file that does not exist yet, the same for all processes.
        overrides: further engine arguments, as in `default_engine_args`.

    Raises:
        RuntimeError: if the process has a process group or current config already.
    """
    import torch
    import vllm.ir
    from vllm.config import CompilationMode, set_current_vllm_config
    from vllm.config import model as model_config
    from vllm.config.vllm import get_current_vllm_config_or_none
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.model_loader import utils as loader_utils
    from vllm.model_executor.models import ModelRegistry, registry
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    if torch.distributed.is_initialized() or get_current_vllm_config_or_none():
        raise RuntimeError("this process already runs a vLLM model or engine")
    if mode is None and not compile_mm_encoder:
        mode = CompilationMode.NONE
    asked = {"mode": mode, "compile_mm_encoder": compile_mm_encoder}
    compilation_config = asked | overrides.pop("compilation_config", {})
    overrides = {"mm_device_do_normalize": False} | overrides
    args = default_engine_args(
        checkpoint,
        compilation_config=compilation_config,
        tensor_parallel_size=world_size,
        **overrides,
    )
    load_general_plugins()
    with contextlib.ExitStack() as stack:
        # `model_class_overrides` are registered for the life of the process, and the
        # third does not know which class an architecture has.
        stack.enter_context(mock.patch.dict(ModelRegistry.models))
        # vLLM looks at classes in processes of their own, 20 s each, so that nothing is
        # imported here before a worker forks. Here the class is needed anyway.
        stack.enter_context(
            mock.patch.object(
                registry, "_run_in_subprocess", lambda function: function()
            )
        )
        # A worker starts without: a tower that a limit of 0 leaves out is built on the
        # meta device, and its tables would be handed to the next one.
        stack.enter_context(mock.patch.dict(rotary_embedding._ROPE_DICT, clear=True))
        overridden = model_config._REGISTERED_MODEL_CLASS_OVERRIDES
        stack.callback(overridden.clear)
        loader_utils._MODEL_ARCH_BY_HASH.clear()
        vllm_config = EngineArgs(**args).create_engine_config()
        if current_platform.is_cpu():
            # The CPU worker replaces these two for good; both need an accelerator.
            for name in ("empty_cache", "synchronize"):
                stack.enter_context(mock.patch.object(torch.accelerator, name))
            if mode == CompilationMode.VLLM_COMPILE:
                stack.enter_context(vllm_compile_on_cpu(vllm_config))
        # As in WorkerBase.__init__, but undone afterwards.
        stack.enter_context(vllm_config.kernel_config.ir_op_priority.set_priority())
        wrap = vllm_config.compilation_config.ir_enable_torch_wrap
        stack.enter_context(vllm.ir.enable_torch_wrap(wrap))
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(set_current_vllm_config(vllm_config))
        stack.callback(cleanup_dist_env_and_memory)
        init_distributed_environment(
            world_size=world_size,
            rank=rank,
            local_rank=rank,
            distributed_init_method=f"file://{rendezvous or f'{directory}/rendezvous'}",
            backend="gloo",
        )
        ensure_model_parallel_initialized(world_size, 1)
        yield vllm_config


def load_model(vllm_config: "VllmConfig") -> "nn.Module":
    """Returns the whole model, loaded as a worker loads it.

    vLLM's own class resolution and weight loader are used, so a plugin's class is found
    if the plugin is registered. The model is in eval mode; `model.visual` is the tower.

    Args:
        vllm_config: the current config, from `tower_context`.
    """
    from vllm.model_executor.model_loader import get_model

    return get_model(vllm_config=vllm_config)


def embed_inputs(
    vllm_config: "VllmConfig", requests: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns what a worker hands to `embed_multimodal` for a batch of requests.

    vLLM's own processor of the model makes it, request by request, and vLLM's own
    grouping joins it.

    Args:
        vllm_config: the current config, from `tower_context`.
        requests: what `LLM.generate` takes, each with items of one same modality.

    Raises:
        ValueError: if the processor refuses an item, or the items are no single batch.
    """
    return batch_items(
        [item for request in requests for item in process_items(vllm_config, request)]
    )


def process_items(
    vllm_config: "VllmConfig", request: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Returns a request's items, (modality, item), for `batch_items`."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    processor = MULTIMODAL_REGISTRY.create_processor(vllm_config.model_config)
    data = processor.info.parse_mm_data(request["multi_modal_data"])
    prompt = request.get("prompt", request.get("prompt_token_ids"))
    processed = processor(prompt, mm_items=data)["mm_kwargs"]
    return [(name, item) for name in processed for item in processed[name]]


def batch_items(items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns what `embed_multimodal` gets for these items, in one batch."""
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    ((_, _, inputs),) = group_and_batch_mm_kwargs(list(items))
    return dict(inputs)


@dataclass(frozen=True)
class Server:
    """A running `vllm serve`.

    Attributes:
        url: for instance "http://127.0.0.1:12345"; the OpenAI API is under "/v1".
        model: the name of the served model.
        log: path of the server's output.
        start_seconds: from the start of the process until it was healthy.
        pid: of its first process, which started the others.
    """

    url: str
    model: str
    log: Path
    start_seconds: float
    pid: int

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Sends JSON and returns the HTTP status and the answer's JSON (or text)."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except json.JSONDecodeError:
            return status, text


@contextlib.contextmanager
def vllm_serve(
    checkpoint: Path | str,
    *args: str,
    engine_args: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    deadline_s: float = 300,
) -> Iterator[Server]:
    """Runs a real server on a free loopback port and ends it on leaving.

    Args:
        checkpoint: directory of a tiny checkpoint.
        args: further arguments of `vllm serve`.
        engine_args: the same, as an engine takes them.
        env: added to this process's environment and `ENGINE_ENVIRONMENT`.
        deadline_s: seconds until it must be healthy.

    Raises:
        RuntimeError: with the end of the server's log, if it exits or is not healthy in
            time.
    """
    options = default_engine_args(checkpoint, **(engine_args or {}))
    model = options.pop("model")
    arguments = [model, *_command_line(options), *args]
    environment = {**ENGINE_ENVIRONMENT, **(env or {})}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "server.log"
        with serving(arguments, log, environment, deadline_s) as (url, seconds, pid):
            yield Server(url, model, log, seconds, pid)


def _command_line(engine_args: Mapping[str, Any]) -> list[str]:
    """Turns engine arguments into flags: dicts as JSON, True as a bare flag."""
    flags = []
    for name, value in engine_args.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif isinstance(value, dict):
            flags += [flag, json.dumps(value)]
        else:
            flags += [flag, str(value)]
    return flags


@contextlib.contextmanager
def quick_compile(backend: str = "eager", **options: Any) -> "Iterator[VllmConfig]":
    """Inside, regions are compiled as in a new process, without gradients.

    Args:
        backend: of `torch.compile`. By default Dynamo alone, which is quickest.
        options: further arguments of `VllmConfig`.
    """
    import torch
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    from vllm_mmc.compilation import shared_graph

    compilation = CompilationConfig(compile_mm_encoder=True)
    config = VllmConfig(compilation_config=compilation, **options)
    config.compilation_config.backend = backend  # vLLM's CPU platform has set its own
    with (
        set_current_vllm_config(config),
        mock.patch.dict(shared_graph._structures, clear=True),
        torch.inference_mode(),
    ):
        yield config


@contextlib.contextmanager
def vllm_compile_on_cpu(vllm_config: "VllmConfig") -> Iterator[None]:
    """Sets mode 3 again after the CPU platform lowered it, and makes it work there."""
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    vllm_config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    vllm_config.compilation_config.compile_sizes = []
    passes = "mmc_testing.cpu_passes.CpuPassManager"
    with mock.patch.object(
        type(current_platform), "get_pass_manager_cls", classmethod(lambda _: passes)
    ):
        yield
