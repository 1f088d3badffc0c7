# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The Dockerfile and the manifest in examples/, without Docker and a cluster.

`make site` holds the manifest against the schemas of Kubernetes.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_mmc.cli import cache, main

EXAMPLES = Path(__file__).parents[2] / "examples"
STAND_IN = """#!/bin/sh
printf '%s\\n' "$(basename "$0")" "$@" >> "$SAID"
echo -- >> "$SAID"
test "$(basename "$0")" = "$FAILS" && exit 1
exit 0
"""


def dockerfile() -> dict[str, list[str]]:
    """Instruction -> its arguments, of each that occurs once."""
    text = (EXAMPLES / "docker/Dockerfile").read_text()
    found = {}
    for line in re.sub(r"\\\n", "", text).splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found[name] = json.loads(rest) if rest.startswith("[") else rest.split()
    return found


def started(tmp_path: Path, fails: str) -> tuple[int, list[list[str]]]:
    """Exit status of the container's command, and what it calls."""
    for name in ("vllm", "vllm-mmc"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    said = tmp_path / "said"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "SAID": str(said), "FAILS": fails}
    made = dockerfile()
    done = subprocess.run(made["ENTRYPOINT"] + made["CMD"], env=env)
    calls = said.read_text().split("--\n")[:-1]
    return done.returncode, [call.splitlines() for call in calls]


def parsed(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the real command makes of its arguments; it does nothing."""
    found: list[Any] = []

    def run(args: Any) -> int:
        found.append(args)
        return 0

    monkeypatch.setattr(cache, "run_import", run)
    assert command[0] == "vllm-mmc" and main.main(command[1:]) == 0
    return found[0]


def test_the_container_imports_and_then_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, (ours, vllm) = started(tmp_path, "")
    assert status == 0
    copied = [Path("/opt/encoder") / n for n in dockerfile()["COPY"][:-1]]
    args = parsed(ours, monkeypatch)
    assert [args.bundle, args.public_key] == copied
    option, value = vllm[-2:]
    assert vllm[:2] == ["vllm", "serve"] and option == "--compilation-config"
    assert json.loads(value) == {"compile_mm_encoder": True}


def test_a_refused_bundle_ends_the_container(tmp_path: Path) -> None:
    status, calls = started(tmp_path, "vllm-mmc")
    assert status == 1 and len(calls) == 1


def test_the_pod_imports_where_it_serves_from(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = yaml.safe_load((EXAMPLES / "kubernetes/pod.yaml").read_text())["spec"]
    (first,), (server,) = pod["initContainers"], pod["containers"]
    for key in ("image", "env", "resources"):
        assert first[key] == server[key]
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in first["volumeMounts"]}
    assert mounts.keys() == volumes
    args = parsed(first["command"], monkeypatch)
    assert str(args.bundle).startswith(mounts["bundles"])
    assert str(args.public_key).startswith(mounts["keys"])
    (root,) = [e["value"] for e in first["env"] if e["name"] == "VLLM_CACHE_ROOT"]
    assert root.startswith(mounts["cache"])
    assert server["volumeMounts"] == [{"name": "cache", "mountPath": mounts["cache"]}]
    assert json.loads(server["command"][-1]) == {"compile_mm_encoder": True}
