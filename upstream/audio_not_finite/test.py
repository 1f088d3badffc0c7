# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/multimodal/test_parse.py."""

import numpy as np
import pytest
from vllm.multimodal.parse import MultiModalDataParser


@pytest.mark.parametrize("rate", [None, 16000])
@pytest.mark.parametrize(
    "samples",
    [[], [0.0, np.nan], [0.0, np.inf], [[0.0] * 3, [0.0, np.nan, 0.0]]],
    ids=["empty", "nan", "inf", "nan in one channel"],
)
def test_broken_audio_is_refused(samples, rate):
    """A NaN would stay in the KV cache and spoil later answers of other requests."""
    parser = MultiModalDataParser(target_sr=16000, target_channels=1)
    audio = np.array(samples, np.float32)
    item = audio if rate is None else (audio, rate)
    with pytest.raises(ValueError, match="at least one sample"):
        parser.parse_mm_data({"audio": [item]})


def test_finite_audio_is_accepted():
    parser = MultiModalDataParser(target_sr=16000, target_channels=1)
    audios = [np.zeros(8, np.float32), None, np.ones((2, 8), np.float32), [0.0, 1.0]]
    assert len(parser.parse_mm_data({"audio": audios})["audio"]) == 4
