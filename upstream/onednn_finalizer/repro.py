# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A linear layer on CPU is never released if it is collected while Dynamo traces.

Exit status 0: it is released. `CPUDNNLGEMMHandler.__del__` reads a tensor, and the
garbage collector may run it under the mode that stands in for tensors in tracing.
"""

import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from vllm import _custom_ops as ops


def main() -> int:
    handler = ops.create_onednn_mm(torch.randn(24, 16).t(), 32)
    release, released, errors = handler.dtor, [], []

    def counted(pointer: int) -> None:
        released.append(pointer)
        release(pointer)

    handler.dtor = counted
    sys.unraisablehook = lambda raised: errors.append(type(raised.exc_value).__name__)
    with FakeTensorMode():
        del handler
    print(f"handlers released: {len(released)} of 1; errors in __del__: {errors}")
    return int(len(released) != 1 or bool(errors))


if __name__ == "__main__":
    sys.exit(main())
