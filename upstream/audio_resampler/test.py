# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/multimodal/test_audio.py."""

import importlib.util
import sys
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
from vllm.multimodal import audio as audio_module


class BrokenTorchaudio:
    """A finder of modules that lets `import torchaudio` raise an error."""

    def __init__(self, error: Exception):
        self.error = error

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchaudio":
            raise self.error


def _audio_module_with(error: Exception) -> ModuleType:
    """A second copy of the module, imported where torchaudio raises the error."""
    spec = importlib.util.spec_from_file_location(
        audio_module.__name__, audio_module.__file__
    )
    module = importlib.util.module_from_spec(spec)
    modules = {k: v for k, v in sys.modules.items() if k != "torchaudio"}
    with (
        patch.dict(sys.modules, modules, clear=True),
        patch.object(sys, "meta_path", [BrokenTorchaudio(error), *sys.meta_path]),
    ):
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'torchaudio'"),
        OSError("libcudart.so.13: cannot open shared object file"),
    ],
    ids=["not installed", "built for CUDA"],
)
def test_audio_resampler_without_torchaudio(error):
    """vLLM's default resampler is an optional package on some platforms."""
    resampler = _audio_module_with(error).AudioResampler(target_sr=16000)
    assert resampler.method == "soxr"
    audio = np.sin(np.arange(44100) / 50).astype(np.float32)
    out = resampler.resample(audio, orig_sr=44100)
    assert out.shape == (16000,)
    middle = np.sin(np.arange(16000) * (44100 / 16000) / 50)[1000:-1000]
    np.testing.assert_allclose(out[1000:-1000], middle, atol=1e-3)
