# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What compiling the encoders of this process has done so far."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Counts since the process started; seconds are wall time.

    vLLM's own `compilation_counter` is kept as well, with one model seen for each
    structure.
    """

    structures: int = 0
    """Structures met; each has one leader."""
    followers: int = 0
    """Instances that reuse a leader's compiled function."""
    graphs: int = 0
    """Graphs compiled: one per structure and call signature."""
    recompiles: int = 0
    """Graphs compiled for a structure that already had one."""
    artifact_loads: int = 0
    """Graphs loaded from the compile cache instead of being compiled."""
    compile_seconds: float = 0.0
    load_seconds: float = 0.0

    @contextmanager
    def expect(self, **changes: int) -> Generator[None, None, None]:
        """Raise AssertionError unless each named counter changes by that much."""
        before = asdict(self)
        yield
        after = asdict(self)
        seen = {name: after[name] - before[name] for name in changes}
        if seen != changes:
            raise AssertionError(f"counters changed by {seen}, expected {changes}")


counters = Counters()
