# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's row-parallel layer without the rank in its graph.

Stock gives the bias to the product of rank 0 alone, so the graph of each region reads
the rank, and no two ranks can share it. Here every rank adds the bias after the sum.
The sum is the same up to the order of its terms, and Inductor fuses the addition with
what follows.
"""

import torch
import torch.nn as nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    RowParallelLinear,
    UnquantizedLinearMethod,
)


class UnrankedRowParallelLinear(RowParallelLinear):
    """[..., input_size / ranks] -> [..., output_size], of the input's dtype."""

    def forward(
        self, input_: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None]:
        output = self.quant_method.apply(self, input_, None)
        if self.reduce_results:
            output = tensor_model_parallel_all_reduce(output)
        if self.bias is not None and not self.skip_bias_add:
            # vLLM keeps the bias in float32 for some products on CPU.
            output = (output + self.bias).to(output.dtype)
        if not self.return_bias:
            return output
        return output, self.bias if self.skip_bias_add else None


def unranked_for(layer: nn.Module) -> type[UnrankedRowParallelLinear] | None:
    """The class for a row-parallel layer of vLLM that several ranks share.

    None for subclasses, for a layer that one rank has whole, for one that takes its
    part of the input by the rank, for a quantised one (its kernel may keep the bias in
    an order of its own), and for any other module.
    """
    shared = (
        type(layer) is RowParallelLinear
        and layer.tp_size > 1
        and layer.input_is_parallel
        and isinstance(layer.quant_method, UnquantizedLinearMethod)
    )
    return UnrankedRowParallelLinear if shared else None
