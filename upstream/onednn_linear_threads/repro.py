# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's linear layer on CPU mixes up two threads. Exit status 0: it does not.

Two threads call one layer, which oneDNN's handler multiplies for. Each result is
compared with that of a single thread, until one is wrong. PyTorch's layer is right in
the same loop.
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

CALLS = 20_000


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
    with torch.inference_mode():
        expected = [layer(x)[0].clone() for x in inputs]
    calls = [0, 0]
    wrong = threading.Event()

    def work(index: int) -> None:
        with torch.inference_mode():
            while calls[index] < CALLS and not wrong.is_set():
                found, _ = layer(inputs[index])
                calls[index] += 1
                if not torch.allclose(found, expected[index], atol=1e-2):
                    wrong.set()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"two threads, one layer: {sum(calls)} calls, wrong: {wrong.is_set()}")
    return int(wrong.is_set())


if __name__ == "__main__":
    sys.exit(main())
