# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""The settings of this package, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Each field is read from `VLLM_MMC_<NAME>`: "1" for on, "0" or unset for off."""

    disable: bool = False
    """Register nothing: every model is vLLM's own."""
    allow_untested_vllm: bool = False
    """Register with a vLLM release that this version was not tested with."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings.

        Raises:
            ValueError: A variable is neither "0" nor "1".
        """
        values = {}
        for field in fields(cls):
            name = variable(field.name)
            text = environ.get(name, "0")
            if text not in ("0", "1"):
                raise ValueError(f'{name} must be "0" or "1", not "{text}"')
            values[field.name] = text == "1"
        return cls(**values)


def variable(setting: str) -> str:
    return f"VLLM_MMC_{setting.upper()}"


VARIABLES = tuple(variable(field.name) for field in fields(Settings))
