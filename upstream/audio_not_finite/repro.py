# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM accepts audio that is empty, NaN or infinite. Exit status 0: it is refused."""

import sys

import numpy as np
from vllm.multimodal.parse import MultiModalDataParser

BROKEN = {
    "NaN": np.array([0.0, np.nan], np.float32),
    "infinite": np.array([0.0, np.inf], np.float32),
    "NaN in one channel": np.array([[0.0] * 3, [0.0, np.nan, 0.0]], np.float32),
    "empty": np.array([], np.float32),
}


def main() -> int:
    parser = MultiModalDataParser(target_sr=16000, target_channels=1)
    parser.parse_mm_data({"audio": [np.zeros(8, np.float32), None]})
    accepted = []
    for name, samples in BROKEN.items():
        try:
            parser.parse_mm_data({"audio": [(samples, 16000)]})
        except ValueError:  # a status of 400
            continue
        accepted.append(name)
    print(f"audio that is accepted: {', '.join(accepted) or 'none of what is broken'}")
    return int(bool(accepted))


if __name__ == "__main__":
    sys.exit(main())
