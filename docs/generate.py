# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Writes the pages that are made from the code: `make docs`."""

import ast
import inspect
import json
from dataclasses import fields
from pathlib import Path

from vllm_mmc.catalog import CATALOG
from vllm_mmc.compat.vllm_version import TESTED
from vllm_mmc.settings import Settings, variable

HERE = Path(__file__).parent
NOTE = "<!-- Made by `make docs`; edit docs/generate.py or what it reads. -->\n\n"


KINDS = ("equality", "full graph", "engine", "server", "two ranks")

SUPPORTED_MODELS = """\
# Supported models

With vLLM from {low} to below {high}. `vllm-mmc list` prints the same.

| architecture | our name | regions, compiled once each | stock compiles |
|---|---|---|---|
{rows}

## What was run

Tests that passed, by what they show, as the last recorded run of `make test` and
`make test-slow` left them in `docs/test-results.json` (`pytest --record`):

- **equality**: to stock eager and to Hugging Face, item by item, alone and in batches;
  nothing compiled after the warm-up; off is stock to the bit.
- **full graph**: one graph for every size, guards on. Encoders of the same packed kind
  share a test: it stands at Qwen2-Audio.
- **engine**: real engines answer as stock's do, by exact counters.
- **server**: two real servers, stock and ours, and bad input.
- **two ranks**: weights, or items, split over two processes.

| | {kinds} |
|---|{dashes}
{results}
"""

CONFIGURATION = """\
# Configuration

Compiling is switched with vLLM's own `compile_mm_encoder`, and tuned with the rest of
vLLM's compilation config. Our own settings:

| name | variable | values | default | meaning |
|---|---|---|---|---|
{rows}

## Where a setting may stand

All of them may stand in the environment, under the name of the variable. Those that
need not be known before vLLM has a configuration may also stand in vLLM's additional
config, which then decides:

```console
$ vllm serve ... --additional-config '{{"vllm_mmc": {{"parity_check": "first"}}}}'
```

Only in the environment: {process}.

In Python: `LLM(..., additional_config={{"vllm_mmc": {{...}}}})`. Lists are written in
JSON, also in the environment: `VLLM_MMC_COMPILE_SIZES='[1024, 4096]'`.

A setting that is set is part of the compile cache's key, wherever it stands: serve with
the settings that you warmed the cache with.

## Values that are not allowed

- **In the environment**, whichever it is: one WARNING that names the variable and what
  is allowed, and vLLM runs without this package.
- **In the additional config**, an unknown name too: with `compile_mm_encoder`, an error
  at engine start that names the setting and what is allowed. Without, it is not read.
- **Ranges and sizes that this encoder never sees**, wherever they stand: an error at
  engine start that names its step and its limit.

## vLLM's variables that matter here

`VLLM_PLUGINS` (a list of plugin names; ours is `mmc`; unset means all),
`VLLM_CACHE_ROOT` (where the compile cache lives), `VLLM_DISABLE_COMPILE_CACHE=1`
(nothing is read or kept).
"""


def supported_models() -> str:
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    rows = [
        f"| `{entry.architecture}` | `{entry.compiled_architecture}` "
        f"| {', '.join(entry.regions)} | {entry.stock} |"
        for entry in CATALOG
    ]
    passed = json.loads((HERE / "test-results.json").read_text())
    results = [
        f"| {family} | " + " | ".join(str(kinds.get(k, "")) for k in KINDS) + " |"
        for family in dict.fromkeys(entry.family for entry in CATALOG)
        for kinds in (passed.get(family, {}),)
    ]
    return NOTE + SUPPORTED_MODELS.format(
        low=low,
        high=high,
        rows="\n".join(rows),
        kinds=" | ".join(KINDS),
        dashes="---|" * len(KINDS),
        results="\n".join(results),
    )


def configuration() -> str:
    meanings = _docstrings_of_fields(Settings)
    rows = [
        f"| `{field.name}` | `{variable(field.name)}` | {field.metadata['allowed']} "
        f"| {_written(field.default)} | {meanings[field.name]} |"
        for field in fields(Settings)
    ]
    process = [f"`{f.name}`" for f in fields(Settings) if f.metadata["process"]]
    return NOTE + CONFIGURATION.format(
        rows="\n".join(rows), process=" and ".join(process)
    )


def _written(default: object) -> str:
    return f'"{int(default)}"' if isinstance(default, bool) else json.dumps(default)


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
