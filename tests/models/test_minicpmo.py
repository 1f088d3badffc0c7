# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Which class MiniCPM-o's version asks for; its audio is in test_audio.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_mmc.models import minicpmo


def build(**config: Any) -> Any:
    model_config = SimpleNamespace(hf_config=SimpleNamespace(**config))
    return minicpmo.CompiledMiniCPMO(
        vllm_config=SimpleNamespace(model_config=model_config)
    )


def test_the_version_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, model in minicpmo.VERSIONS.items():
        assert model.__name__ == "CompiledMiniCPMO" + version.replace(".", "_")
        monkeypatch.setitem(minicpmo.VERSIONS, version, lambda v=version, **_: v)
    assert [build(version="2.6"), build(version=4.5), build()] == ["2.6", "4.5", "2.6"]
    with pytest.raises(ValueError, match=r"only supports versions 2.6, 4.5"):
        build(version="3.0")
