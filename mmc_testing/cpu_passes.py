# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""vLLM's post-grad passes without those that name CUDA operators.

vLLM never uses its own compile backend (mode 3) on CPU, and its pass manager fails
there: `FixFunctionalizationPass` looks up `_C.fused_add_rms_norm_static_fp8_quant`.
`mmc_testing.engine.tower_context(mode=3)` puts this one in its place.
"""

from torch import fx
from vllm.compilation.passes.ir.clone_elimination import UnsafeCloneEliminationPass
from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass
from vllm.compilation.passes.pass_manager import PostGradPassManager
from vllm.compilation.passes.utility.post_cleanup import PostCleanupPass
from vllm.compilation.passes.vllm_inductor_pass import VllmInductorPass
from vllm.config import VllmConfig, set_current_vllm_config


class CpuPassManager(PostGradPassManager):
    """Lowering and cleaning up, no fusions; Inductor undoes the functionalization."""

    def configure(self, config: VllmConfig) -> None:
        self.pass_config = config.compilation_config.pass_config
        with set_current_vllm_config(config, check_compile=False):
            self.ir_lowering = VllmIRLoweringPass(config)
            self.clone_elimination = UnsafeCloneEliminationPass(config)
            self.post_cleanup = PostCleanupPass(config)
            self.fix_functionalization = _Nothing(config)


class _Nothing(VllmInductorPass):
    def __call__(self, graph: fx.Graph) -> None:
        pass
