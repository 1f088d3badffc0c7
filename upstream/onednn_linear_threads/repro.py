# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's linear layer on CPU mixes up two threads. Exit status 0: it does not.

Two threads call one layer, which oneDNN's handler multiplies for. Each result is
compared with that of a single thread. PyTorch's layer is right in the same loop.
"""

import sys
import tempfile
import threading

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.model_executor.layers.linear import ReplicatedLinear

CALLS = 4000


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        layer = ReplicatedLinear(256, 256, disable_tp=True, params_dtype=torch.float32)
    for parameter in layer.parameters():
        parameter.data.normal_(std=1 / 16)
    layer.quant_method.process_weights_after_loading(layer)
    inputs = [torch.randn(64, 256) for _ in range(2)]
    wrong = [0, 0]
    with torch.inference_mode():
        expected = [layer(x)[0].clone() for x in inputs]

    def work(index: int) -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                found, _ = layer(inputs[index])
                wrong[index] += not torch.allclose(found, expected[index], atol=1e-2)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(wrong)} of {2 * CALLS} calls of two threads are wrong")
    return int(sum(wrong) > 0)


if __name__ == "__main__":
    sys.exit(main())
