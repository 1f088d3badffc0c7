# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""For tests/compile/test_compile_ranges.py."""

import torch
import vllm._custom_ops  # noqa: F401 - registers what the fusion passes look for
from torch import nn
from vllm.compilation.counter import compilation_counter
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.compilation import CompilationConfig, CompilationMode
from vllm.forward_context import set_forward_context
from vllm.platforms import current_platform


@support_torch_compile(dynamic_arg_dims={"x": 0, "images": 0}, is_encoder=True)
class ToyEncoder(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        x, y = x.view(-1, 8), images.view(8, -1)
        return x @ (y @ y.T)


def test_compile_sizes_leave_encoders_alone(monkeypatch, tmp_path):
    """`compile_sizes` are decoder tokens: one graph of an encoder serves all sizes.

    An encoder has several dynamic dimensions. A static graph would be made with all
    of them at the same size, and be used whenever the first of them has that size.
    """
    monkeypatch.setenv("VLLM_DISABLE_COMPILE_CACHE", "1")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    vllm_config = VllmConfig(
        compilation_config=CompilationConfig(compile_sizes=[16], backend="inductor")
    )
    # The platform for CPU chooses another mode; what is tested is the same on all.
    vllm_config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    vllm_config.compilation_config.compile_sizes = [16]
    device = current_platform.device_type

    with set_current_vllm_config(vllm_config), torch.inference_mode():
        encoder = ToyEncoder(vllm_config=vllm_config)
        images = torch.randn(16, 8, device=device)[:3]
        with compilation_counter.expect(num_backend_compilations=1):
            for tokens in (24, 16):
                x = torch.randn(tokens, 8, device=device)
                with set_forward_context(None, vllm_config=vllm_config):
                    out = encoder(x, images)
                y = images.view(8, -1)
                torch.testing.assert_close(out, x @ (y @ y.T), rtol=1e-4, atol=1e-4)
