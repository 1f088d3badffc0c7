# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Is a CUDA graph being captured?

PyTorch's own function is not there in a build without CUDA.
"""

import torch
from vllm.platforms import current_platform


def capturing() -> bool:
    """Whether what is launched now is written down for a replay.

    Meanwhile the host may not wait for the device, and nothing may be compiled: what
    tries a kernel out would be replayed, or ends the capture with an error.
    """
    return current_platform.is_cuda_alike() and (
        torch.cuda.is_current_stream_capturing()
    )
