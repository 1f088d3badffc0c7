# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""`register()` in real vLLM processes: what it changes, says, and never does.

Each `in_vllm(function)` runs the function in a fork of a process that has imported
vLLM and nothing of ours, so no test sees another's registrations. Such functions are
sent as source: they import what they need and return what JSON can hold.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm.model_executor.models import registry

from vllm_mmc import __version__
from vllm_mmc.catalog import (
    AUTO_MODULE,
    CATALOG,
    EAGER,
    compiled_name,
    surveyed,
    versioned,
)
from vllm_mmc.plugin import register


def surveyed_with(vllm_version: str) -> dict[str, str]:
    return surveyed(registry._MULTIMODAL_MODELS, registry._VLLM_MODELS, vllm_version)


def under_both_names(models: dict[str, str]) -> dict[str, str]:
    return {
        name: model
        for architecture, model in models.items()
        for name in (architecture, compiled_name(model))
    }


# A release may be without an architecture of the catalogue.
KNOWN = [entry for entry in CATALOG if entry.architecture in registry._VLLM_MODELS]


def by_file(vllm_version: str) -> dict[str, str]:
    return {
        entry.architecture: versioned(entry.compiled_architecture, vllm_version)
        for entry in KNOWN
    }


BY_FILE = by_file(vllm.__version__)
SURVEYED = surveyed_with(vllm.__version__)
EXPECTED = under_both_names(BY_FILE | SURVEYED)


# ---------------------------------------------------------------- a process to fork


def fork_on_request() -> None:
    import json
    import os
    import sys
    import traceback
    from typing import Any

    import vllm.engine.arg_utils
    import vllm.model_executor.models.registry  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            try:
                os.environ.update(request["env"])
                names: dict[str, Any] = {"Any": Any}
                exec(request["source"], names)
                value = names[request["name"]]()
                with open(request["value"], "w") as file:
                    json.dump(value, file)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        print("done", flush=True)


@dataclass
class Outcome:
    value: Any
    output: str

    def lines(self) -> list[str]:
        """What our plugin said. (Paths may have our name in them.)"""
        said = re.compile(r"vllm_mmc (is |\d)")
        return [line for line in self.output.splitlines() if said.search(line)]


InVllm = Callable[..., Outcome]


@pytest.fixture(scope="module")
def in_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InVllm]:
    directory = tmp_path_factory.mktemp("in_vllm")
    source = inspect.getsource(fork_on_request) + "\nfork_on_request()"
    ours = {name for name in os.environ if name.startswith(("VLLM_MMC_", "VLLM_PLUG"))}
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in ours},
    )

    def answer(wanted: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:  # vLLM may print while it is imported
            if line.strip() == wanted:
                return
        raise RuntimeError("the process that is forked has ended")

    def run(function: Callable[[], Any], **env: str) -> Outcome:
        assert process.stdin is not None
        value, output = directory / "value.json", directory / "output.txt"
        value.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
        request = {
            "source": textwrap.dedent(inspect.getsource(function)),
            "name": function.__name__,
            "env": env,
            "value": str(value),
            "output": str(output),
        }
        print(json.dumps(request), file=process.stdin, flush=True)
        answer("done")
        text = output.read_text()
        assert value.exists(), text
        return Outcome(json.loads(value.read_text()), text)

    answer("ready")
    yield run
    process.kill()
    process.wait()


# ---------------------------------------------------------------- what it changes


def registry_changes() -> dict[str, str]:
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    before = dict(ModelRegistry.models)
    load_general_plugins()
    after = ModelRegistry.models
    return {
        name: f"{after[name].module_name}:{after[name].class_name}"
        if name in after
        else "removed"
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }


def registry_changes_of_two_calls() -> dict[str, str]:
    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    before = dict(ModelRegistry.models)
    register()
    register()
    after = ModelRegistry.models
    assert before.keys() <= after.keys()
    return {
        name: f"{model.module_name}:{model.class_name}"
        for name, model in after.items()
        if before.get(name) != model
    }


def test_entry_point() -> None:
    (ours,) = [p for p in entry_points(group="vllm.general_plugins") if p.name == "mmc"]
    assert ours.load() is register


def test_plugin_changes_the_registry_as_the_catalogue_says(in_vllm: InVllm) -> None:
    assert in_vllm(registry_changes).value == EXPECTED


def test_without_survey_the_catalogue_alone_is_registered(in_vllm: InVllm) -> None:
    outcome = in_vllm(registry_changes, VLLM_MMC_SURVEY="0")
    assert outcome.value == under_both_names(BY_FILE)


def test_eager_architectures_stay_vllms_own() -> None:
    assert not EAGER.keys() & EXPECTED.keys()
    assert EAGER.keys() <= registry._VLLM_MODELS.keys()


def test_second_call_changes_nothing_more(in_vllm: InVllm) -> None:
    assert in_vllm(registry_changes_of_two_calls).value == EXPECTED


def test_imports_no_model_and_touches_no_device(in_vllm: InVllm) -> None:
    def scenario() -> dict[str, Any]:
        import sys

        import torch

        touched: list[str] = []
        torch.cuda._lazy_init = lambda: touched.append("cuda")
        before = set(sys.modules)
        from vllm_mmc.plugin import register

        register()
        register()
        return {
            "imported": sorted(sys.modules.keys() - before),
            "touched": touched or torch.cuda.is_initialized(),
        }

    found = in_vllm(scenario).value
    allowed = (
        *("vllm_mmc", "vllm_mmc.catalog", "vllm_mmc.compat"),
        *("vllm_mmc.metrics", "vllm_mmc.plugin", "vllm_mmc.settings"),
    )
    # The standard library is what prometheus_client brings.
    light = {"prometheus_client", *sys.stdlib_module_names}
    assert {
        m
        for m in found["imported"]
        if m.partition(".")[0] not in light and not m.startswith("vllm_mmc.compat.")
    } == set(allowed)
    assert not found["touched"]


def test_a_spawned_process_sees_the_registration(in_vllm: InVllm) -> None:
    def scenario() -> dict[str, str]:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        expression = (
            "(__import__('vllm.plugins').plugins.load_general_plugins(),"
            " {name: f'{model.module_name}:{model.class_name}' for name, model in"
            " __import__('vllm').ModelRegistry.models.items()"
            " if model.module_name.startswith('vllm_mmc')})[1]"
        )
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(eval, expression).result()

    outcome = in_vllm(scenario)
    assert outcome.value == EXPECTED
    assert outcome.lines() == []


def test_inspection_finds_what_the_stock_class_supports(
    in_vllm: InVllm, tmp_path: Path
) -> None:
    def scenario() -> list[Any]:
        import dataclasses
        from types import SimpleNamespace

        from vllm import ModelRegistry
        from vllm.model_executor.models import registry
        from vllm.model_executor.models.registry import _ModelInfo

        from vllm_mmc.catalog import CATALOG
        from vllm_mmc.plugin import register

        known = [e for e in CATALOG if e.architecture in ModelRegistry.models]
        stock = {e: ModelRegistry.models[e.architecture] for e in known}
        register()
        config = SimpleNamespace(model_impl="auto", convert_type="none")
        pairs = []
        for index, entry in enumerate(known):
            if index == 1:  # one in a process of its own, as vLLM does; the rest here
                registry._run_in_subprocess = lambda function: function()
            expected = _ModelInfo.from_model_cls(stock[entry].load_model_cls())
            for name in (entry.architecture, entry.compiled_architecture):
                info, found = ModelRegistry.inspect_model_cls(name, config)
                assert found == name
                pairs.append((dataclasses.asdict(expected), dataclasses.asdict(info)))
        return pairs

    pairs = in_vllm(scenario, VLLM_CACHE_ROOT=str(tmp_path)).value
    # vLLM wrote these files: the answers came from no older cache.
    classes = {entry.model for entry in KNOWN}
    assert len(list((tmp_path / "modelinfos").glob("vllm_mmc-*"))) == len(classes)
    assert len(pairs) == 2 * len(KNOWN)
    for stock, ours in pairs:
        architecture = stock.pop("architecture")
        assert ours.pop("architecture") == f"Compiled{architecture}"
        assert ours == stock
        assert ours["supports_multimodal"]


def test_compile_cache_keys_of_other_models_stay(in_vllm: InVllm) -> None:
    def scenario() -> list[str]:
        from vllm.config.utils import hash_factors
        from vllm.envs import compile_factors
        from vllm.plugins import load_general_plugins

        before = hash_factors(compile_factors())
        load_general_plugins()
        return [before, hash_factors(compile_factors())]

    before, after = in_vllm(scenario).value
    assert before == after


def reported() -> list[str]:
    """What of ours is on vLLM's registry of metrics."""
    from vllm.plugins import load_general_plugins
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    load_general_plugins()
    from vllm_mmc.plugin import register

    register()
    names = get_prometheus_registry()._names_to_collectors
    return [name for name in names if name.startswith("vllm_mmc:")]


def test_counters_are_metrics(in_vllm: InVllm) -> None:
    assert "vllm_mmc:encoder_graphs_total" in in_vllm(reported).value


# ---------------------------------------------------------------- off


def test_off_there_are_no_metrics(in_vllm: InVllm) -> None:
    assert in_vllm(reported, VLLM_MMC_DISABLE="1").value == []


@pytest.mark.parametrize("env", [{"VLLM_MMC_DISABLE": "1"}, {"VLLM_PLUGINS": "other"}])
def test_off(in_vllm: InVllm, env: dict[str, str]) -> None:
    outcome = in_vllm(registry_changes, **env)
    assert outcome.value == {}
    assert outcome.lines() == []


@pytest.mark.parametrize("value", ["0", "1", "yes"])
def test_vllm_knows_our_variables(in_vllm: InVllm, value: str) -> None:
    def scenario() -> str:
        import os

        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform

        EngineArgs(model=".")
        current_platform.validate_environ(hard_fail=True)
        os.environ["VLLM_MMC_TYPO"] = "1"
        try:
            current_platform.validate_environ(hard_fail=True)
        except ValueError as error:
            return str(error)
        return ""

    env = {"VLLM_MMC_DISABLE": value, "VLLM_MMC_ALLOW_UNTESTED_VLLM": value}
    assert "VLLM_MMC_TYPO" in in_vllm(scenario, **env).value


def test_a_bad_value_is_said_once_and_leaves_vllm_stock(in_vllm: InVllm) -> None:
    outcome = in_vllm(registry_changes, VLLM_MMC_DISABLE="yes")
    assert outcome.value == {}
    (line,) = outcome.lines()
    assert 'VLLM_MMC_DISABLE must be "0" or "1", not "yes"' in line


def registry_changes_under_another_vllm() -> dict[str, str]:
    import vllm
    from vllm import ModelRegistry

    from vllm_mmc.plugin import register

    vllm.__version__ = "0.99.0"
    before = dict(ModelRegistry.models)
    register()
    register()
    return {
        name: f"{model.module_name}:{model.class_name}"
        for name, model in ModelRegistry.models.items()
        if before.get(name) != model
    }


def test_an_untested_vllm_is_left_stock_and_told_why(in_vllm: InVllm) -> None:
    outcome = in_vllm(registry_changes_under_another_vllm)
    assert outcome.value == {}
    (line,) = outcome.lines()
    assert "vLLM 0.99.0 is outside the tested range, 0.31 to below 0.34" in line
    assert "set VLLM_MMC_ALLOW_UNTESTED_VLLM=1" in line


def test_an_untested_vllm_can_be_tried(in_vllm: InVllm) -> None:
    env = {"VLLM_MMC_ALLOW_UNTESTED_VLLM": "1"}
    outcome = in_vllm(registry_changes_under_another_vllm, **env)
    expected = by_file("0.99.0") | surveyed_with("0.99.0")
    assert outcome.value == under_both_names(expected)
    assert outcome.lines() == []


def test_a_vllm_without_its_table_of_models(in_vllm: InVllm) -> None:
    """Only what has a file here, which needs no table to find the stock class."""

    def scenario() -> dict[str, str]:
        from vllm import ModelRegistry
        from vllm.model_executor.models import registry
        from vllm.plugins import load_general_plugins

        del registry._VLLM_MODELS
        before = dict(ModelRegistry.models)
        load_general_plugins()
        return {
            name: f"{model.module_name}:{model.class_name}"
            for name, model in ModelRegistry.models.items()
            if before.get(name) != model
        }

    with_file = {e.architecture for e in KNOWN if e.mixin is None}
    expected = {name: BY_FILE[name] for name in with_file}
    outcome = in_vllm(scenario)
    assert outcome.value == under_both_names(expected)
    assert "registry._VLLM_MODELS" in outcome.output


def test_a_vllm_without_an_architecture_of_the_catalogue(in_vllm: InVllm) -> None:
    def scenario() -> list[str]:
        from vllm import ModelRegistry
        from vllm.model_executor.models import registry

        from vllm_mmc.plugin import register

        for table in (registry._VLLM_MODELS, ModelRegistry.models):
            table.pop("ClefOmniForJointSchema", None)
        before = dict(ModelRegistry.models)
        register()
        return [n for n, m in ModelRegistry.models.items() if before.get(n) != m]

    gone = {"ClefOmniForJointSchema", "CompiledClefOmniForJointSchema"}
    assert set(in_vllm(scenario).value) == EXPECTED.keys() - gone


def test_a_failure_half_way_leaves_vllm_stock(in_vllm: InVllm) -> None:
    def scenario() -> bool:
        from vllm import ModelRegistry
        from vllm.plugins import load_general_plugins

        works = type(ModelRegistry).register_model
        calls = []

        def fails_the_second_time(self: Any, *args: Any) -> None:
            calls.append(args)
            if len(calls) == 2:
                raise RuntimeError("no room")
            works(self, *args)

        type(ModelRegistry).register_model = fails_the_second_time
        before = list(ModelRegistry.models.items())
        load_general_plugins()
        assert len(calls) == 2
        return before == list(ModelRegistry.models.items())

    outcome = in_vllm(scenario)
    assert outcome.value is True
    (line,) = outcome.lines()
    assert line.endswith("all models are vLLM's own: RuntimeError: no room")


# ---------------------------------------------------------------- other plugins


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


# ---------------------------------------------------------------- what it says

INFO = {"VLLM_LOGGING_LEVEL": "INFO"}


def engine_start() -> None:
    """The order of every engine's start: plugins, logging, then the model."""
    import logging
    import os

    from vllm.engine.arg_utils import EngineArgs
    from vllm.logger import configure_logging_if_needed

    args = EngineArgs(model=".")
    print("before logging", flush=True)
    configure_logging_if_needed(args.create_logging_config())
    logger = logging.getLogger("vllm.config.model")
    logger.info("Downcasting torch.float32 to torch.float16.")
    for architecture in os.environ["ARCHITECTURES"].split(","):
        logger.info("Resolved architecture: %s", architecture)
    logging.getLogger("vllm_mmc.compilation.regions").info("[Block] compiled")


def test_one_line_when_an_engine_starts(in_vllm: InVllm) -> None:
    """Also where vLLM resolves the model twice."""
    name = "Qwen2_5_VLForConditionalGeneration"
    outcome = in_vllm(engine_start, **INFO, ARCHITECTURES=f"{name},{name}")
    (line,) = outcome.lines()
    assert " INFO " in line
    assert line.endswith(
        f"vllm_mmc {__version__} serves {name}. With compile_mm_encoder it compiles: "
        "patch embed, block, merger."
    )
    before, after = outcome.output.split("before logging")
    assert line not in before  # `vllm --version` prints a version and no more
    assert re.search(r" INFO .*\[Block\] compiled", after)  # our other loggers too


def test_the_line_of_a_surveyed_model(in_vllm: InVllm) -> None:
    name = "LlavaForConditionalGeneration"
    (line,) = in_vllm(engine_start, **INFO, ARCHITECTURES=name).lines()
    assert f"serves {name}. " in line
    assert line.endswith("it compiles: what a survey of its encoder finds.")
    env = INFO | {"VLLM_MMC_SURVEY": "0"}
    assert in_vllm(engine_start, **env, ARCHITECTURES=name).lines() == []


def test_each_model_of_an_engine_has_its_line(in_vllm: InVllm) -> None:
    names = "CompiledWhisperForConditionalGeneration", "Llama4ForConditionalGeneration"
    first, second = in_vllm(engine_start, **INFO, ARCHITECTURES=",".join(names)).lines()
    assert f"serves {names[0]}. With compile_mm_encoder it compiles: block." in first
    assert f"serves {names[1]}. " in second


@pytest.mark.parametrize("name", ["LlamaForCausalLM", *list(EAGER)[:1], "Unknown"])
def test_no_line_of_what_is_not_ours(in_vllm: InVllm, name: str) -> None:
    assert in_vllm(engine_start, **INFO, ARCHITECTURES=name).lines() == []


def test_the_line_says_that_it_is_off(in_vllm: InVllm) -> None:
    env = INFO | {"VLLM_MMC_DISABLE": "1", "ARCHITECTURES": "A,A"}
    (line,) = in_vllm(engine_start, **env).lines()
    assert line.endswith("is switched off (VLLM_MMC_DISABLE=1)")


def test_no_line_at_level_warning(in_vllm: InVllm) -> None:
    env = {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "ARCHITECTURES": "WhisperForConditionalGeneration",
    }
    assert in_vllm(engine_start, **env).lines() == []


@pytest.mark.parametrize("env", [{}, {"VLLM_MMC_DISABLE": "yes"}])
@pytest.mark.parametrize("main_process", [True, False])
def test_only_the_main_process_speaks(
    in_vllm: InVllm, main_process: bool, env: dict[str, str]
) -> None:
    def in_main() -> None:
        import logging

        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging

        from vllm_mmc.plugin import register

        configure_logging(LoggingConfig(log_level="INFO"))
        register()
        register()
        name = "WhisperForConditionalGeneration"
        logging.getLogger("vllm.config.model").info("Resolved architecture: %s", name)

    def in_child() -> None:
        import logging
        import multiprocessing

        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging

        from vllm_mmc.plugin import register

        def start() -> None:
            register()
            name = "WhisperForConditionalGeneration"
            logger = logging.getLogger("vllm.config.model")
            logger.info("Resolved architecture: %s", name)

        configure_logging(LoggingConfig(log_level="INFO"))
        process = multiprocessing.get_context("fork").Process(target=start)
        process.start()
        process.join()
        assert process.exitcode == 0

    lines = in_vllm(in_main if main_process else in_child, **env).lines()
    assert len(lines) == main_process


def test_logging_hooks_can_be_undone(in_vllm: InVllm) -> None:
    def scenario() -> bool:
        import logging

        from vllm_mmc.compat import vllm_logging
        from vllm_mmc.plugin import register

        ours, starts = map(logging.getLogger, ("vllm_mmc", vllm_logging.STARTS))
        before = (ours.parent, list(starts.filters))
        register()
        assert (ours.parent, starts.filters) != before
        vllm_logging.leave()
        return (ours.parent, starts.filters) == before

    assert in_vllm(scenario).value
