# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Private names of vLLM, PyTorch and others: the only place that spells them.

Each name is looked up once, when it is needed, together with the form that the package
relies on: the parameters that a function takes and the attributes that it sets. If a
release lacks a name or has it in another form, whatever uses the name steps aside with
a reason: no import of this package fails, and no entry of the cache is blamed.
"""

import functools
import importlib
import inspect
import logging
import re
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


class AbsentSymbolError(RuntimeError):
    """A region, or an encoder, cannot be compiled without a name that is absent."""


@dataclass(frozen=True)
class Symbol:
    """One private name.

    Attributes:
        path: "module:name" or "module:Class.name". An annotated attribute of a class
            counts as present.
        without: What is so without it, in words for the user.
        takes: Parameters that this package passes by name.
        sets: Attributes that the function must read or set on its object.
    """

    path: str
    without: str
    takes: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The attribute: the last of `sets`, else the last part of the path."""
        return self.sets[-1] if self.sets else re.split(r"[:.]", self.path)[-1]

    def absent(self) -> str | None:
        """Why it cannot be used, in words; None if it can."""
        return _look_up(self)[1]

    def usable(self) -> bool:
        """Whether it can be used; if not, one WARNING says why."""
        return usable(self)

    def find(self) -> Any:
        """What it meant at first, or None, with one WARNING."""
        return _look_up(self)[0] if self.usable() else None

    def need(self) -> Any:
        """What it meant at first.

        Raises:
            AbsentSymbolError: It is absent; the message says why.
        """
        found, reason = _look_up(self)
        if reason is not None:
            raise AbsentSymbolError(reason)
        return found

    def of(self, owner: Any, *default: Any) -> Any:
        """The attribute of this name that `owner` has now, or the default.

        Raises:
            AbsentSymbolError: It is absent; the message says why.
        """
        self.need()
        return getattr(owner, self.name, *default)

    def set(self, owner: Any, value: Any) -> None:
        """Set the attribute of this name. Raises as `of`."""
        self.need()
        setattr(owner, self.name, value)


def usable(*symbols: Symbol) -> bool:
    """Whether all of these can be used; if not, one WARNING says why."""
    if (reason := absent(*symbols)) is not None:
        _warn(reason)
    return reason is None


def absent(*symbols: Symbol) -> str | None:
    """Why one of these cannot be used, in words; None if all can."""
    return next((why for s in symbols if (why := s.absent()) is not None), None)


@functools.cache
def _look_up(symbol: Symbol) -> tuple[Any, str | None]:
    module, _, path = symbol.path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = _attribute(found, name)
        if symbol.takes:
            parameters = inspect.signature(found).parameters
            if missing := [name for name in symbol.takes if name not in parameters]:
                raise AttributeError(f"it does not take {', '.join(missing)}")
        if symbol.sets:
            names = inspect.unwrap(found).__code__.co_names
            if missing := [name for name in symbol.sets if name not in names]:
                raise AttributeError(f"it does not set {', '.join(missing)}")
    except Exception as error:  # an import can raise anything
        return None, (
            f"there is no {module}.{path} as this package knows it ({error}): "
            f"{symbol.without}"
        )
    return found, None


def _attribute(owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        declared = dict(getattr(owner, "__dataclass_fields__", {}))
        for base in getattr(owner, "__mro__", ()):
            declared |= inspect.get_annotations(base)
        if name in declared:
            return declared[name]
        raise


@functools.cache
def _warn(reason: str) -> None:
    logger.warning("In these releases of vLLM and PyTorch %s.", reason)


# ---------------------------------------------------------------- tracing

_AOT = "torch._dynamo.aot_compile"
_EAGER = "the regions of encoders run eager"

AOT_COMPILE = Symbol("torch._dynamo.config:enable_aot_compile", _EAGER)
AOT_ARTIFACTS = Symbol(f"{_AOT}:AOTCompiledFunction._artifacts", _EAGER)
AOT_FUNCTION = Symbol(f"{_AOT}:AOTCompiledFunction.__post_init__", _EAGER, sets=("fn",))
AOT_UNCHECKED = Symbol(f"{_AOT}:AOTCompiledFunction.disable_guard_check", _EAGER)
GUARD_MANAGER = Symbol(f"{_AOT}:CompileArtifacts.guard_manager", _EAGER)
GUARD_CHECK = Symbol(
    "torch._dynamo.guards:GuardManagerWrapper.__init__", _EAGER, sets=("root",)
)
CACHE_ENTRIES = Symbol(
    "torch._dynamo.eval_frame:_debug_get_cache_entry_list",
    'with the backend "eager" the regions of encoders run eager',
)
CPP_GUARDS = Symbol(
    "torch._dynamo.config:enable_cpp_symbolic_shape_guards",
    "the checks of sizes may be compiled, in some seconds",
)
DYNAMIC_SOURCES = Symbol(
    "torch.compiler.config:dynamic_sources",
    "each value of a whole number among the arguments is a further graph",
)
DUCK_SHAPE = Symbol(
    "torch.fx.experimental._config:use_duck_shape",
    "dimensions that have equal sizes at first stay equal in a graph",
)
SIZE_OBLIVIOUS = Symbol(
    "torch.fx.experimental._config:backed_size_oblivious",
    "a dimension of size 1 is a further graph",
)
INDEXING = Symbol(
    "torch._inductor.config:assume_32bit_indexing",
    "the option assume_32_bit_indexing is not passed on",
)
MARK_DYNAMIC = Symbol("torch._dynamo:mark_dynamic", _EAGER, takes=("min", "max"))
MAYBE_MARK_DYNAMIC = Symbol("torch._dynamo:maybe_mark_dynamic", _EAGER)
MARK_UNBACKED = Symbol(
    "torch._dynamo.decorators:mark_unbacked",
    "regions in which a dimension can be 1 run eager",
    takes=("hint_override", "shape_id"),
)
EXCLUDED_KEYS = Symbol(
    "torch._C:_ExcludeDispatchKeyGuard",
    "a call outside of inference mode is compiled again",
)
KEY_SET = Symbol("torch._C:DispatchKeySet.add", EXCLUDED_KEYS.without)
KEYS = Symbol("torch._C:DispatchKey.ADInplaceOrView", EXCLUDED_KEYS.without)
UNSUPPORTED_GUARDS = Symbol(
    "torch._dynamo.guards:CheckFunctionManager.UNSUPPORTED_SERIALIZATION_GUARD_TYPES",
    "a region that needs a guard which cannot be saved runs eager, and the message "
    "does not name the argument",
)
STRIDES = Symbol(
    "vllm.env_override:_apply_constrain_to_fx_strides_patch",
    "PyTorch 2.11 may give an operator strides that it does not expect",
)
OPERATOR = Symbol(
    "torch._ops:OpOverload",
    "graphs of modules that keep an operator in an attribute are not kept",
)
OPERATOR_PACKET = Symbol("torch._ops:OpOverloadPacket", OPERATOR.without)

# ---------------------------------------------------------------- compiling

SECONDS = Symbol(
    "torch._dynamo.utils:compilation_time_metrics",
    "all seconds of a compilation are counted as tracing",
)
MONITOR = Symbol(
    "vllm.compilation.monitor:monitor_torch_compile",
    "vLLM does not count the seconds in which it compiles encoders",
    takes=("is_encoder",),
)
MONITOR_TAG = Symbol(
    MONITOR.path,
    "vLLM's log lines of a compilation do not name the region",
    takes=("tag",),
)
PROCESS_POOL = Symbol(
    "torch._inductor.async_compile:AsyncCompile.use_process_pool",
    "C++ kernels are compiled one after another",
)
COMPILE_THREADS = Symbol("torch._inductor.config:compile_threads", PROCESS_POOL.without)
PRECOMPILE_HEADER = Symbol(
    "torch._inductor.codecache:_precompile_header",
    "a warm start may compile headers, in one to ten seconds",
)
INSTRUCTION_SETS = Symbol(
    "torch._inductor.cpu_vec_isa:valid_vec_isa_list",
    "each process tests the instruction sets again, in some seconds",
)
CPP_SETTINGS = Symbol(
    "torch._inductor.config:cpp",
    "graphs are not shared with other kinds of CPU by TORCHINDUCTOR_CPP_MARCH",
)
HASH_FACTORS = Symbol(
    "vllm.compilation.caching:aot_compile_hash_factors",
    "the graphs of encoders are not kept in the compile cache",
)
INDUCTOR_SETTINGS = Symbol(
    "torch._inductor.config:save_config_portable",
    "`vllm-mmc cache explain` does not name the setting of Inductor that changed",
)
IGNORE_COMPILE = Symbol(
    "vllm.compilation.decorators:IGNORE_COMPILE_KEY",
    "vLLM's decorator on a parent class may count a region as one of its own",
)
MODEL_TAG = Symbol(
    "vllm.compilation.backends:model_tag",
    "set_model_tag does not change the name of a region",
)
MODEL_IS_ENCODER = Symbol(
    "vllm.compilation.backends:model_is_encoder", MODEL_TAG.without
)

# ---------------------------------------------------------------- models

VLLM_MODELS = Symbol(
    "vllm.model_executor.models.registry:_VLLM_MODELS",
    "only the architectures with a file in this package are compiled",
)
MULTIMODAL_MODELS = Symbol(
    "vllm.model_executor.models.registry:_MULTIMODAL_MODELS", VLLM_MODELS.without
)
_INTERFACES = "vllm.model_executor.models.interfaces:SupportsMultiModal"
MARK_TOWER = Symbol(f"{_INTERFACES}._mark_tower_model", "encoders run eager")
TOWER_NAMES = Symbol(f"{_INTERFACES}._tower_model_names", MARK_TOWER.without)
LANGUAGE_NAMES = Symbol(f"{_INTERFACES}._language_model_names", MARK_TOWER.without)
PROCESSOR_FACTORY = Symbol(
    f"{_INTERFACES}._processor_factory",
    "audio that is empty, NaN or infinite is not refused",
)
PROCESSING_INFO = Symbol(
    "vllm.multimodal.registry:_ProcessorFactories.info", PROCESSOR_FACTORY.without
)
RESAMPLER = Symbol(
    "vllm.multimodal.parse:MultiModalDataParser.__init__",
    "audio of another rate is an error where torchaudio is missing",
    sets=("audio_resampler",),
)
RESAMPLING_METHOD = Symbol(
    "vllm.multimodal.audio:AudioResampler.__init__", RESAMPLER.without, sets=("method",)
)
DUMMY_AUDIOS = Symbol(
    "vllm.multimodal.processing.dummy_inputs:BaseDummyInputsBuilder._get_dummy_audios",
    "an audio encoder may be surveyed with clips of one length only",
    takes=("num_audios",),
)
FORWARD_METHOD = Symbol(
    "vllm.model_executor.custom_op:CustomOp.__init__",
    "the attention of encoders is vLLM's own",
    sets=("_forward_method",),
)
DISPATCH_FORWARD = Symbol(
    "vllm.model_executor.custom_op:CustomOp.dispatch_forward",
    FORWARD_METHOD.without,
    takes=("compile_native",),
)
CPU_LINEAR = Symbol(
    "vllm.model_executor.layers.utils:cpu_unquantized_gemm",
    "encoders multiply in their own dtype, also where that is slow",
    sets=("cpu_linear",),
)
WHISPER_WEIGHTS = Symbol(
    "vllm.model_executor.models.ultravox:_load_whisper_layer_weights",
    "the encoder is vLLM's own",
)
LLAMA4_QKV = Symbol(
    "vllm.model_executor.models.mllama4:"
    "Llama4ForConditionalGeneration._consolidate_qkv_weights",
    "the encoder of Llama4 loads no weights without an engine",
)
FLAMINGO_FEATURES = Symbol(
    "vllm.model_executor.models.audioflamingo3:"
    "AudioFlamingo3ForConditionalGeneration._normalize_audio_feature_inputs",
    WHISPER_WEIGHTS.without,
)
MODEL_LOGGER = Symbol(
    "vllm.config.model:logger", "the line that says what is compiled is not printed"
)
ACTIVE_COLLECTOR = Symbol(
    "transformers.utils.output_capturing:_active_collector",
    "encoders of transformers that can collect hidden states run eager",
)

# ---------------------------------------------------------------- metrics

_NO_METRICS = "the counters of encoders are not on /metrics"

MMAP_FILE = Symbol("prometheus_client.mmap_dict:MmapedDict", _NO_METRICS)
MMAP_KEY = Symbol(
    "prometheus_client.mmap_dict:mmap_key",
    _NO_METRICS,
    takes=("metric_name", "name", "labelnames", "labelvalues", "help_text"),
)
MERGE_FILES = Symbol(
    "prometheus_client.multiprocess:MultiProcessCollector.merge", _NO_METRICS
)

# ---------------------------------------------------------------- overridden methods

_ATTENTION = (
    "vllm.model_executor.layers.attention.mm_encoder_attention:MMEncoderAttention"
)
_MODELS = "vllm.model_executor.models"
_NO_AUDIO = "the compiled audio encoder is not called"

OVERRIDDEN = (
    MARK_TOWER,
    Symbol(
        f"{_INTERFACES}._embed_text_input_ids",
        "vLLM compiles a sharded vocabulary embedding once more, for one token",
        takes=("input_ids", "embed_input_ids", "is_multimodal"),
    ),
    Symbol(
        f"{_MODELS}.transformers.base:Base._decorate_cls_for_torch_compile",
        "vLLM's Transformers backend may compile an encoder as a whole",
        takes=("is_encoder",),
    ),
    Symbol(f"{_ATTENTION}._forward_fa", FORWARD_METHOD.without),
    Symbol(f"{_ATTENTION}._forward_triton", FORWARD_METHOD.without),
    Symbol(f"{_ATTENTION}.__init__", FORWARD_METHOD.without, sets=("_fa_version",)),
    Symbol("torch.nn:Conv2d._conv_forward", CPU_LINEAR.without),
    Symbol(
        f"{_MODELS}.qwen2_audio:Qwen2AudioForConditionalGeneration._process_audio_input",
        _NO_AUDIO,
    ),
    Symbol(
        f"{_MODELS}.qwen3_asr:Qwen3ASRForConditionalGeneration._process_audio_input",
        _NO_AUDIO,
    ),
    Symbol(
        f"{_MODELS}.audioflamingo3:"
        "AudioFlamingo3ForConditionalGeneration._process_audio_input",
        _NO_AUDIO,
    ),
)
"""Methods that classes of this package override. Nothing breaks without one: vLLM does
not call the override. A test says which is gone."""

ALL = OVERRIDDEN + tuple(
    value for value in list(globals().values()) if isinstance(value, Symbol)
)
