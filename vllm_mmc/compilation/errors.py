# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Why a region could not be compiled, in one paragraph that says what to do."""

import re
from collections.abc import Iterator

# What the compiler says -> what helps. The first that fits is named.
FIXES = {
    r"TimeoutError|not done after": (
        "raise the setting compile_seconds, or leave the region eager"
    ),
    r"Expected tensors only, but got": (
        "pass sizes and other plain values by __init__ and read them from self: a "
        "graph takes tensors only"
    ),
    r"positional argument of type": (
        "annotate the argument of __init__, or pass it by keyword"
    ),
    r"[Ff]orward context is not set": (
        "call the encoder inside vllm.forward_context.set_forward_context(None, "
        "vllm_config)"
    ),
    r"[Ss]pecialized|ConstraintViolation|0/1 speciali[sz]ation": (
        "forward takes a dimension named in dynamic_arg_dims for a constant: take it "
        "out, or, if its first size was 0 or 1, name it in mark_unbacked_dims"
    ),
    r"data-dependent|\.item\(\)|\.tolist\(\)": (
        "compute what depends on tensor values before the region (host metadata), or "
        "state it with torch._check in shape_invariants"
    ),
    r"No space left on device|Disk quota exceeded": (
        "make room in the directory of the kernels (TORCHINDUCTOR_CACHE_DIR) and in "
        "the temporary directory (TMPDIR)"
    ),
    r"failed to map segment|noexec|no directory to load kernels from": (
        "let TORCHINDUCTOR_CACHE_DIR name a directory that can be written, of a file "
        "system that is not mounted noexec"
    ),
    r"InvalidCxxCompiler|No working C\+\+ compiler|Python\.h|"
    r"No such file or directory: '[^']*(g\+\+|gcc|clang|c\+\+)": (
        "install a C++ compiler and Python's headers, or point CXX at one"
    ),
    r"MemoryError|OutOfMemory|out of memory|Killed signal|Cannot allocate memory": (
        "leave more memory to the compiler, or build the cache elsewhere with "
        "`vllm-mmc cache warm`"
    ),
    r"[Gg]raph break|Unsupported|fullgraph|not supported|unimplemented": (
        "move what cannot be traced out of forward, or make it a custom op with a fake"
    ),
}


def explain(error: BaseException) -> str:
    """Kind and place of `error`, its first line, and the fix where one is known."""
    chain = list(_chain(error))
    text = "\n".join(f"{type(e).__name__}: {e}" for e in chain)
    first_line = next(
        (line.strip() for e in chain for line in str(e).splitlines() if line.strip()),
        "",
    )
    fix = next((fix for known, fix in FIXES.items() if re.search(known, text)), None)
    place = next((found for e in chain if (found := _place(e))), None)
    said = f"{type(error).__name__}{f' at {place}' if place else ''}: {first_line}"
    if fix is None:
        return said
    notes = [note for e in chain for note in getattr(e, "__notes__", ())]
    # They name the directory that kernels are in.
    where = " ".join(["", *notes]) if "TORCHINDUCTOR_CACHE_DIR" in fix else ""
    return f"{said} - to mend it: {fix}.{where}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__


def _place(error: BaseException) -> str | None:
    """file:line in the traced code."""
    if stack := getattr(error, "real_stack", None):
        return f"{stack[-1].filename}:{stack[-1].lineno}"
    # Dynamo ends some messages with the traced code's own traceback.
    lines = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    return ":".join(lines[-1]) if lines else None
