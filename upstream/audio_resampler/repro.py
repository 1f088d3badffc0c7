# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Without a working torchaudio, vLLM cannot resample audio. Exit status 0: it can.

torchaudio raises an ImportError where it is not installed, and an OSError where it was
built for CUDA and the machine has none.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder

import numpy as np


class Broken(MetaPathFinder):
    """Lets `import torchaudio` raise an error."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname == "torchaudio":
            raise self.error("torchaudio does not work here")


def resampled(error: type[Exception]) -> str:
    finder = Broken(error)
    sys.meta_path.insert(0, finder)
    sys.modules.pop("torchaudio", None)
    sys.modules.pop("vllm.multimodal.audio", None)
    try:
        audio = importlib.import_module("vllm.multimodal.audio")
        resampler = audio.AudioResampler(16000)
        found = resampler.resample(np.zeros(44100, np.float32), orig_sr=44100)
        return "right" if found.shape == (16000,) else f"shape {found.shape}"
    except Exception as problem:
        return f"{type(problem).__name__}: {str(problem)[:60]}"
    finally:
        sys.meta_path.remove(finder)


def main() -> int:
    found = {error: resampled(error) for error in (ImportError, OSError)}
    print("; ".join(f"{error.__name__}: {result}" for error, result in found.items()))
    return int(any(result != "right" for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
