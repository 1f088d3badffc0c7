# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""What compiling the encoders of this process has done so far."""

from collections.abc import Generator, Mapping
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
    """Graphs compiled: one per structure, and one more where no graph's guards accept
    a call."""
    recompiles: int = 0
    """Graphs compiled for a structure and size range that already had one."""
    artifact_loads: int = 0
    """Graphs loaded from the compile cache instead of being compiled."""
    artifact_misses: int = 0
    """Graphs that the compile cache was asked for and did not have."""
    unkept: int = 0
    """Graphs compiled that the compile cache does not keep: every start compiles
    them."""
    fallbacks: int = 0
    """Graphs that could not be compiled; what they stand for runs eager."""
    rescues: int = 0
    """Graphs that raised an error where eager did not, and are not used again."""
    parity_checks: int = 0
    """Comparisons of compiled with eager (setting `parity_check`)."""
    parity_failures: int = 0
    """Structures that run eager because they differed from it."""
    measured_eager: int = 0
    """Structures that run eager because it is faster (setting `measure`)."""
    replays: int = 0
    """Calls of an audio encoder that a CUDA graph of vLLM's has answered."""
    dynamo_seconds: float = 0.0
    """Tracing, and putting the result together."""
    inductor_seconds: float = 0.0
    """In the backend: AOTAutograd, Inductor and its compilers."""
    load_seconds: float = 0.0
    """Loading from the compile cache, what was found unfit included."""

    @property
    def compile_seconds(self) -> float:
        return self.dynamo_seconds + self.inductor_seconds

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


def table(values: Mapping[str, int | float]) -> str:
    """Counters by name, a line each."""
    width = max(map(len, values))
    return "\n".join(
        f"  {name.replace('_', ' '):{width}}  "
        + (f"{value:.2f}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    )
