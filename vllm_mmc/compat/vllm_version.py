# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Which releases of vLLM this package was tested with."""

import re

TESTED = ((0, 31), (0, 34))
"""From the first release (included) to the second (excluded)."""


def untested(version: str) -> str | None:
    """None if `version` is in the tested range, else what to tell the user."""
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    release = re.match(r"(\d+)\.(\d+)", version)
    if release and TESTED[0] <= (int(release[1]), int(release[2])) < TESTED[1]:
        return None
    return f"vLLM {version} is outside the tested range, {low} to below {high}"
