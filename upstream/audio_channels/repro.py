# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM resamples [samples, channels] along the channels. Exit status 0: no longer."""

import sys

import numpy as np
from vllm.multimodal.parse import MultiModalDataParser


def main() -> int:
    parser = MultiModalDataParser(
        target_sr=16000, target_channels=1, audio_resample_method="scipy"
    )
    stereo = np.zeros((2 * 48000, 2), np.float32)  # as soundfile.read returns it
    items = parser.parse_mm_data({"audio": [(stereo, 48000)]})["audio"]
    samples = len(items.get(0))
    print(f"2 s of stereo at 48 kHz become {samples / 16000:.1f} s at 16 kHz")
    return int(samples != 2 * 16000)


if __name__ == "__main__":
    sys.exit(main())
