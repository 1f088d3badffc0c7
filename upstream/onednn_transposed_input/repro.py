# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's linear layer on CPU refuses a transposed batch of one. Exit status 0: no.

A batch of two is accepted, because `reshape` has to copy it; of one it makes a view.
"""

import sys

import torch
from vllm import _custom_ops as ops


def main() -> int:
    weight = torch.randn(24, 16)
    handler = ops.create_onednn_mm(weight.t(), 32)
    right = {}
    for batch in (2, 1):
        x = torch.randn(batch, 16, 9).transpose(1, 2)
        try:
            y = ops.onednn_mm(handler, x, None)
            right[batch] = torch.allclose(y, x @ weight.t(), atol=1e-4)
        except RuntimeError as error:
            right[batch] = str(error).partition(" (Could")[0].strip()
    print("; ".join(f"batch of {n}, transposed: {said}" for n, said in right.items()))
    return int(right != {2: True, 1: True})


if __name__ == "__main__":
    sys.exit(main())
