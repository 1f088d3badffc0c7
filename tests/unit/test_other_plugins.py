# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`register()` beside other plugins: what they registered stays, or is surveyed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.in_vllm import EXPECTED, InVllm
from vllm_mmc.catalog import AUTO_MODULE


def registry_beside_a_string() -> dict[str, str]:
    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    ModelRegistry.register_model("SiglipModel", "their.models:Siglip")
    ModelRegistry.register_model("TheirOwnModel", "their.models:Own")
    register()
    register()
    return {
        name: f"{model.module_name}:{model.class_name}"
        for name, model in ModelRegistry.models.items()
    }


def registry_beside_a_class() -> dict[str, str]:
    import torch.nn as nn
    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    class Theirs(nn.Module):
        __module__ = "their.models"
        __qualname__ = "Theirs"

    ModelRegistry.register_model("LlavaForConditionalGeneration", Theirs)
    ModelRegistry.register_model("WhisperForConditionalGeneration", Theirs)
    ModelRegistry.register_model("TheirOwnModel", Theirs)
    register()
    register()
    return {
        name: getattr(model, "model_cls", model).__qualname__
        if hasattr(model, "model_cls")
        else f"{model.module_name}:{model.class_name}"
        for name, model in ModelRegistry.models.items()
    }


@pytest.mark.parametrize(
    ("scenario", "theirs"),
    [
        (registry_beside_a_string, {"SiglipModel": "their.models:Siglip"}),
        (
            registry_beside_a_class,
            # One that is surveyed, one that has a file of ours.
            {
                "LlavaForConditionalGeneration": "Theirs",
                "WhisperForConditionalGeneration": "Theirs",
            },
        ),
    ],
)
def test_what_another_plugin_registered_stays(
    in_vllm: InVllm, scenario: Callable[[], Any], theirs: dict[str, str]
) -> None:
    outcome = in_vllm(scenario)
    own = {"TheirOwnModel": outcome.value["TheirOwnModel"]}
    assert outcome.value.items() >= (EXPECTED | theirs | own).items()
    assert own["TheirOwnModel"] in ("their.models:Own", "Theirs")
    warnings = [line for line in outcome.output.splitlines() if "stays what" in line]
    for line, (name, model) in zip(sorted(warnings), theirs.items(), strict=True):
        where = model if ":" in model else f"their.models:{model}"
        assert f"{name} stays what another plugin registered, {where}." in line
        assert f"ask for Compiled{name} in --hf-overrides, or load that" in line
        assert f"Compiled{name}" in EXPECTED
    assert "TheirOwnModel" not in outcome.output


def registry_beside_a_multimodal_model() -> dict[str, str]:
    import os
    import sys

    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    sys.path.append(os.environ["THEIR_MODELS"])
    ModelRegistry.register_model("TheirVLModel", "their_vl:Model")
    ModelRegistry.register_model("TheirTextModel", "their_text:Model")
    register()
    register()
    return {
        name: f"{model.module_name}:{model.class_name}"
        for name, model in ModelRegistry.models.items()
        if name.startswith("Their")
    }


def test_a_multimodal_model_of_another_plugin_is_surveyed(
    in_vllm: InVllm, tmp_path: Path
) -> None:
    file = tmp_path / "their_vl.py"
    file.write_text("@MULTIMODAL_REGISTRY.register_processor(P)\nclass Model: ...")
    (tmp_path / "their_text.py").write_text("class Model: ...")
    folder = str(tmp_path)
    stock = {"TheirVLModel": "their_vl:Model", "TheirTextModel": "their_text:Model"}
    found = in_vllm(registry_beside_a_multimodal_model, THEIR_MODELS=folder).value
    ours = found["TheirVLModel"]
    assert ours.startswith(f"{AUTO_MODULE}:CompiledTheirVLModel@their_vl+Model+")
    assert found["TheirTextModel"] == stock["TheirTextModel"]

    # vLLM stores facts about a class under the class's name.
    file.write_text(file.read_text() + "\n")
    found = in_vllm(registry_beside_a_multimodal_model, THEIR_MODELS=folder).value
    assert found["TheirVLModel"] != ours

    for switch in ("VLLM_MMC_SURVEY_PLUGINS", "VLLM_MMC_SURVEY"):
        off = in_vllm(
            registry_beside_a_multimodal_model, THEIR_MODELS=folder, **{switch: "0"}
        )
        assert off.value == stock


def inspections_that_an_upgrade_finds() -> dict[str, Any]:
    import os
    import sys
    from dataclasses import fields

    import vllm
    from vllm import ModelRegistry
    from vllm.model_executor.models.registry import _ModelInfo

    from vllm_mmc import catalog, plugin

    sys.path.append(os.environ["THEIR_MODELS"])
    ModelRegistry.register_model("TheirVLModel", "their_vl:Model")
    before = dict(ModelRegistry.models)
    info = _ModelInfo(**{field.name: None for field in fields(_ModelInfo)})
    one_file = "the digest of a file that stays as it is"

    def with_releases(theirs: str, ours: str) -> dict[str, Any]:
        vllm.__version__ = theirs
        for module in (catalog, plugin):
            vars(module)["__version__"] = ours
        ModelRegistry.models.clear()
        ModelRegistry.models.update(before)
        plugin.register()
        models = ModelRegistry.models
        return {k: v for k, v in models.items() if before.get(k) != v}

    def found(models: dict[str, Any]) -> list[str]:
        return [k for k, v in models.items() if v._load_modelinfo_from_cache(one_file)]

    old = with_releases("0.32.0", "1.0")
    for model in old.values():
        model._save_modelinfo_to_cache(info, one_file)
    return {
        "registered": list(old),
        "same": found(with_releases("0.32.0", "1.0")),
        "another vLLM": found(with_releases("0.32.1", "1.0")),
        "another vllm_mmc": found(with_releases("0.32.0", "1.1")),
    }


def test_an_upgrade_finds_no_older_inspection(in_vllm: InVllm, tmp_path: Path) -> None:
    """vLLM keeps what it knows of a class in a file of the class's name, and reads the
    file if the module that the class is in has the same text."""
    source = "@MULTIMODAL_REGISTRY.register_processor(P)\nclass Model: ..."
    (tmp_path / "their_vl.py").write_text(source)
    env = {"THEIR_MODELS": str(tmp_path), "VLLM_CACHE_ROOT": str(tmp_path)}
    found = in_vllm(inspections_that_an_upgrade_finds, **env).value
    assert set(found["registered"]) == {*EXPECTED, "TheirVLModel"}
    assert found["same"] == found["registered"]
    assert found["another vLLM"] == found["another vllm_mmc"] == []
