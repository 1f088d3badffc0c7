# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A process that has vLLM and nothing of ours, and what `register()` does there.

Each `in_vllm(function)` (conftest.py) runs the function in a fork of that process, so
no test sees another's registrations. Such functions are sent as source: they import
what they need and return what JSON can hold.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import vllm
from vllm.model_executor.models import registry

from vllm_mmc.catalog import CATALOG, compiled_name, surveyed, versioned


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


def reported() -> list[str]:
    """What of ours is on vLLM's registry of metrics."""
    from vllm.plugins import load_general_plugins
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    load_general_plugins()
    from vllm_mmc.plugin import register

    register()
    names = get_prometheus_registry()._names_to_collectors
    return [name for name in names if name.startswith("vllm_mmc:")]
