# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Writes the pages that are made from the code: `make docs`."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path

from vllm_mmc.catalog import CATALOG
from vllm_mmc.compat.vllm_version import TESTED
from vllm_mmc.settings import Settings, variable

HERE = Path(__file__).parent
NOTE = "<!-- Made by `make docs`; edit docs/generate.py or what it reads. -->\n\n"


SUPPORTED_MODELS = """\
# Supported models

With vLLM from {low} to below {high}. `vllm-mmc list` prints the same.

| architecture | our name | regions, compiled once each | stock compiles | status |
|---|---|---|---|---|
{rows}
"""

CONFIGURATION = """\
# Configuration

Compiling is switched with vLLM's own `compile_mm_encoder`, and tuned with the rest of
vLLM's compilation config. Our own settings are environment variables, read when vLLM
starts:

| variable | values | default | meaning |
|---|---|---|---|
{rows}

Another value is reported in one WARNING, and vLLM runs without this package.

vLLM's variables that matter here: `VLLM_PLUGINS` (a list of plugin names; ours is
`mmc`; unset means all), `VLLM_CACHE_ROOT` (where the compile cache lives),
`VLLM_DISABLE_COMPILE_CACHE=1` (nothing is read or kept).
"""


def supported_models() -> str:
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    rows = [
        f"| `{entry.architecture}` | `{entry.compiled_architecture}` "
        f"| {', '.join(entry.regions)} | {entry.stock} | {entry.status} |"
        for entry in CATALOG
    ]
    return NOTE + SUPPORTED_MODELS.format(low=low, high=high, rows="\n".join(rows))


def configuration() -> str:
    meanings = _docstrings_of_fields(Settings)
    rows = [
        f'| `{variable(field.name)}` | "1" or "0" | "{int(bool(field.default))}" '
        f"| {meanings[field.name]} |"
        for field in fields(Settings)
    ]
    return NOTE + CONFIGURATION.format(rows="\n".join(rows))


def _docstrings_of_fields(cls: type) -> dict[str, str]:
    (node,) = ast.parse(inspect.getsource(cls)).body
    body = node.body
    return {
        field.target.id: inspect.cleandoc(doc.value.value).replace("\n", " ")
        for field, doc in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }


PAGES = {
    "supported-models.md": supported_models,
    "configuration.md": configuration,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
