# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`CompiledX` of an architecture without a file: what vLLM and pickle see of it."""

import importlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm.model_executor.models.registry import (
    _MULTIMODAL_MODELS,
    _VLLM_MODELS,
    _ModelInfo,
)
from vllm.platforms import current_platform

from vllm_mmc.catalog import CATALOG, surveyed, versioned
from vllm_mmc.encoder.interfaces import SupportsCompiledEncoder
from vllm_mmc.models import auto

# One whose class has its name, one whose class has another, and two outside of the
# table of multimodal models: an embedding model and the Transformers backend.
ARCHITECTURES = (
    "Qwen3VLForConditionalGeneration",
    "HfMoondream",
    "SiglipModel",
    "TransformersMultiModalForCausalLM",
)
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def compiled(architecture: str, suffix: str = "") -> Any:
    return getattr(auto, f"Compiled{architecture}{suffix}")


def registered(vllm_version: str) -> dict[str, str]:
    return surveyed(_MULTIMODAL_MODELS, _VLLM_MODELS, vllm_version)


@every_architecture
def test_it_is_the_stock_class_with_our_methods_before(architecture: str) -> None:
    stock, ours = auto.stock_class(architecture), compiled(architecture)
    assert issubclass(ours, stock)
    assert ours is not stock
    ours_first = auto._Module, auto.AutoCompiledEncoder, SupportsCompiledEncoder
    assert ours.__mro__[1:4] == ours_first
    assert ours.__name__ == stock.__name__  # vLLM's drafters compare it


@every_architecture
def test_a_version_in_the_name_makes_no_other_class(architecture: str) -> None:
    ours = compiled(architecture)
    assert compiled(architecture, "@1.2") is ours
    assert compiled(architecture, f"@{vllm.__version__}") is ours
    (_, _, name) = versioned(f"Compiled{architecture}", "1.3.dev4+g5d").partition(":")
    assert getattr(auto, name) is ours


def test_a_class_with_a_file_is_found_here_too() -> None:
    entry = next(entry for entry in CATALOG if entry.mixin is None)
    module, _, name = entry.model.partition(":")
    ours = getattr(importlib.import_module(module), name)
    assert getattr(auto, f"{name}@1.2") is ours


@every_architecture
def test_it_pickles_by_reference(architecture: str) -> None:
    ours = compiled(architecture)
    pickled = pickle.dumps(ours)
    assert f"Compiled{architecture}".encode() in pickled
    assert pickle.loads(pickled) is ours
    # Another process has not asked for it yet.
    del vars(auto)[f"Compiled{architecture}"]
    again = pickle.loads(pickled)
    assert again is compiled(architecture)
    assert issubclass(again, auto.stock_class(architecture))


def test_a_class_of_another_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "vllm.model_executor.models.llava"
    (tmp_path / "their_vl.py").write_text(
        f"from {module} import LlavaForConditionalGeneration\n"
        "class TheirLlava(LlavaForConditionalGeneration): ...\n"
        "class Text: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ours = compiled("TheirVLModel", "@their_vl+TheirLlava+0123")
    assert issubclass(ours, auto.AutoCompiledEncoder)
    assert ours.__mro__[-1] is object and ours.__name__ == "TheirLlava"
    assert compiled("TheirText", "@their_vl+Text+0123").__module__ == "their_vl"


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration@0.32.0",
        "CompiledNoSuchModel",
        "CompiledNoSuchModel@0.32.0",
        "Compiled",
        "@0.32.0",
        "compiledSiglipModel",
    ],
)
def test_other_names_are_no_attributes(name: str) -> None:
    with pytest.raises(AttributeError, match="vllm_mmc.models.auto.*has no attribute"):
        getattr(auto, name)


@every_architecture
def test_the_processor_is_the_stock_one(architecture: str) -> None:
    """But for what refuses audio and values of a request that no encoder can use."""
    factory = auto.stock_class(architecture)._processor_factory
    ours = compiled(architecture)._processor_factory
    assert ours.dummy_inputs is factory.dummy_inputs
    assert issubclass(ours.processor, factory.processor)
    assert issubclass(ours.info, factory.info)


@every_architecture
def test_vllm_sees_what_the_stock_class_supports(architecture: str) -> None:
    stock = _ModelInfo.from_model_cls(auto.stock_class(architecture))
    assert stock.supports_multimodal
    assert _ModelInfo.from_model_cls(compiled(architecture)) == stock


@pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere it is no stub")
def test_a_stub_of_vllms_stays_as_it_is() -> None:
    """vLLM has it where the platform cannot run a model. It says why it cannot."""
    architecture = "DeepseekV4ForConditionalGeneration"
    assert architecture in registered("1")
    ours = compiled(architecture)
    assert not _ModelInfo.from_model_cls(ours).supports_multimodal
    with pytest.raises(NotImplementedError, match="not supported on the current"):
        ours(vllm_config=None)
