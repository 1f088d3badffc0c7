# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Transcribe speech with Whisper, with its encoder compiled.

python examples/offline_speech.py [MODEL [RECORDING]]
"""

import sys

import soundfile
from vllm import LLM, SamplingParams

from vllm_mmc.demo.media import SPEECH_RATE, speech


def main(model: str = "openai/whisper-small", recording: str = "") -> None:
    llm = LLM(
        model=model,
        limit_mm_per_prompt={"audio": 1},
        compilation_config={"compile_mm_encoder": True},
    )
    if recording:
        samples, rate = soundfile.read(recording, dtype="float32")
    else:
        samples, rate = speech(10.7), SPEECH_RATE
    prompt = {
        "prompt": "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>",
        "multi_modal_data": {"audio": (samples, rate)},
    }
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=64))
    print("answer:", output.outputs[0].text)


if __name__ == "__main__":
    main(*sys.argv[1:])
