# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Why one patch must not go without the other. Exit status 0: results are right.

Without a patch they are, because on CPU no saved graph is loaded. With the patch of
this folder alone, a subclass computes with the graph of its base class. With that of
the cache key, too, results are right again.
"""

import runpy
import sys
from pathlib import Path

from vllm.config import CompilationMode

if __name__ == "__main__":
    key = runpy.run_path(str(Path(__file__).parents[1] / "artifact_key/repro.py"))
    sys.exit(key["main"](CompilationMode.DYNAMO_TRACE_ONCE))
