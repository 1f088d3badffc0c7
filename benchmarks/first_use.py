# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What Inductor's first use costs in any process."""

from pathlib import Path
from typing import Any

import torch
from vllm.config import CompilationMode, VllmConfig

from vllm_mmc.prove.towers import seconds


def first_use(vllm_config: VllmConfig) -> dict[str, Any]:
    """Compiles silu(x) + 1 and returns how long it took: Inductor's first use.

    What the first compilation of any process pays, whatever it compiles:
    - importing Dynamo, AOTAutograd and Inductor, and their pattern tables;
    - asking the C++ compiler for its version, building and loading a test program per
      instruction set (into TORCHINDUCTOR_CACHE_DIR);
    - precompiling Inductor's C++ header, about half of it all (into TMPDIR: Inductor
      keeps headers for all its cache directories together);
    - tracing one elementwise function with a varying size, and one run of g++.
    With a warm cache it is the imports, one trace and what is checked on loading.

    The compiler flags are those of the encoder's graphs, so the header is theirs; if
    the encoder needs another one all the same, `headers` (the number of precompiled
    headers) goes up, and both scripts record it before and after. Both sides have
    TORCHINDUCTOR_CACHE_DIR point elsewhere while they compile, vLLM to one directory
    per artifact, this package to one for all. That costs neither side anything of the
    above again: instruction sets are remembered by the process.
    """
    options = {}
    if vllm_config.compilation_config.mode != CompilationMode.VLLM_COMPILE:
        options = vllm_config.compilation_config.inductor_compile_config
    function = torch.compile(_silu_plus_one, dynamic=True, options=options)
    with torch.inference_mode():
        taken, _ = seconds(function, torch.randn(96, 80, dtype=torch.bfloat16))
    torch._dynamo.reset()
    return {"first_use_seconds": taken, "headers": precompiled_headers()}


def _silu_plus_one(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) + 1


def precompiled_headers() -> int:
    from torch._inductor.codecache import _HEADER_DIR

    return sum(1 for _ in Path(_HEADER_DIR).rglob("*.gch"))
