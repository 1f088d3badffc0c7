# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Writes the pages that are made from the code: `make docs`."""

import ast
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from vllm.model_executor.models import registry

from mmc_testing.census import ADDS, CENSUS, LACKS, NO_TOWER, REMARKS
from mmc_testing.recipes import RECIPES, Recipe
from tests.encoder.towers import CANNOT, TOWERS
from vllm_mmc.catalog import CATALOG, EAGER, REWRITES, surveyed
from vllm_mmc.compat.vllm_version import TESTED
from vllm_mmc.settings import Settings, variable

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = ROOT / "benchmarks" / "results"
ROOMS = ("compilation", "attention", "layers", "encoder", "sizes", "cache")
LANGUAGES = {"": "dockerfile", ".py": "python", ".sh": "sh", ".yaml": "yaml"}
NOTE = "<!-- Made by `make docs`; edit docs/generate.py or what it reads. -->\n\n"


KINDS = ("equality", "full graph", "engine", "server", "two ranks")

SUPPORTED_MODELS = """\
# Supported models

With vLLM from {low} to below {high}. These have a file in this package. All others are
on the page of [architectures](architectures.md). `vllm-mmc list` prints both. With
another vLLM the package steps aside with one WARNING.

| architecture | our name | regions, compiled once each | stock compiles |
|---|---|---|---|
{rows}

## What is supported

- Devices: CPU (compile mode 2) and, through the same code, CUDA (mode 3). Four families
  have run [on an H200](prove.md#what-it-found-on-an-h200), the others on no GPU.
- Images, video and speech, one item or many; tensor and data parallel; quantised and
  unquantised weights; encoder CUDA graphs, of
  [audio too](design.md#cuda-graphs-of-audio-encoders). Tower LoRA and offloaded towers
  run eager.
- Speech: all clips of a call go through one convolution stem. Qwen2-Audio, Audio
  Flamingo 3, Qwen2.5-Omni, Ultravox, Kimi-Audio, MiniCPM-o, Gemma 4 and Gemma 3n are
  packed: what a clip is padded with is not computed. Audio is understood as [samples,
  channels], too (stock resamples it along the channels), and resampled also where
  torchaudio is missing (stock answers 500).
- A request whose audio has no samples, or that brings NaN, infinite or huge values as
  audio, pixels or embeddings, is refused with status 400. Stock answers, and a NaN in
  its cache then spoils the answers to other requests ([what is
  checked](design.md#what-requests-bring)).

## What was run

Tests that passed, by what they show, as the last recorded run of `make test` and
`make test-slow` left them in `docs/test-results.json` (`pytest --record`):

- **equality**: to stock eager and to Hugging Face, item by item, alone and in batches;
  nothing compiled after the warm-up; with `compile_mm_encoder` off, outputs are bit for
  bit those of stock.
- **full graph**: one graph for every size, guards on. Encoders of the same packed kind
  share a test: it stands at Qwen2-Audio.
- **engine**: real engines answer as stock's do, by exact counters.
- **server**: two real servers, stock and ours, and bad input.
- **two ranks**: weights, or items, split over two processes.

| | {kinds} |
|---|{dashes}
{results}

## What servers and engines were put through

Bad input (`tests/e2e/test_bad_inputs.py`, by `make test-slow`, with Qwen2.5-VL and
Qwen2-Audio): over 150 requests that are wrong or odd, to live servers. Each gets the
status that stock gives, or 400 where stock would keep a NaN. The next good request is
answered as before, and no process ends. Not sent is what ends the engine: another patch
size, which `--trust-request-mm-kwargs` allows, and embeddings of a wrong shape or
number, which `--enable-mm-embeds` allows. vLLM says that both are for trusted clients.

Features of vLLM beside a compiled Qwen2.5-VL (`tests/e2e/test_features.py`, too by
`make test-slow`): engines answer as stock's do with prefix caching, prompts cut within
a picture, embeddings in the place of a picture, weights replaced in a running engine, a
second engine in the process that may see no pictures, and an int8 text model with
drafted tokens (ngram). With adapters (LoRA) vLLM's CPU backend compiles nothing, so
there only the answers are compared; in the mode of a GPU an adapter of the text model
leaves the encoder compiled, and one of the tower makes it eager.

Soak (`tests/e2e/test_soak.py`, by `make test-slow`; here with `SOAK_REQUESTS=10000`):
10,000 different requests, 16 at a time, no cache of processed items. Qwen2.5-VL
(pictures of any shape, two pictures, video, text alone) and Qwen2-Audio (speech of
0.2 to 29 s, two clips, text alone): none failed, nothing was compiled anew, and a
request that came again and again was answered alike. Memory of the engine, median of
the third quarter and of the last: Qwen2.5-VL 1934 and 1942 MiB, stock 1885 and 1976;
Qwen2-Audio 2505 and 2649 MiB, stock 2106 and 2309. What grows there is a cache of
oneDNN: with its bound at 16 products, Qwen2-Audio had 1262 and 1271 MiB ([how to set
it](start-cost.md#memory-on-a-cpu)).

Several processes (`tests/e2e/test_scale.py`, too by `make test-slow`): answers are
those of one process from a tensor-parallel server, one that splits the items
(`--mm-encoder-tp-mode data`), a data-parallel one, and an instance for the encoder
alone beside one for language. On CPU such servers want a NUMA node for each process,
or `VLLM_CPU_OMP_THREADS_BIND=nobind`. vLLM's Ray executors refuse a CPU: "current
platform cpu does not support ray." So of Ray only the counters are tested, in
processes with the environment that its executor gives them.
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

## Other variables

Every variable that this package reads, sets or ignores, and what becomes of a
directory that cannot be used: [environment variables and directories](environment.md).
"""

ARCHITECTURES = """\
# Multimodal architectures

Every multimodal architecture of vLLM, from {low} to below {high}, and what this package
does with its encoder when `compile_mm_encoder` is on.

| | architectures |
|---|---|
| compiled by a file of this package | {n_file} |
| compiled by survey | {n_survey} |
| stays eager | {n_eager} |
| registered for a survey, cannot be tested here | {n_cannot} |
| **all** | {n_all} |

## Compiled by a file of this package

The package has a class for the architecture. Its tests compare it with vLLM and with
Transformers, and run it in engines: see [supported models](supported-models.md).

| architecture | regions, compiled once each | remark |
|---|---|---|
{file}

## Compiled by survey

The package has no model for these. Before the first request, it runs vLLM's own encoder
on dummy inputs of several sizes. It looks for blocks that repeat with equal structure,
and for the dimensions that vary. Then it compiles each kind of block once. What it
cannot compile stays eager, and the log says why. By default the first call of each
structure is compared with eager (`parity_check` in [configuration](configuration.md)).

How this was tested:

- **Tower test**: `tests/encoder/test_towers.py` builds vLLM's encoder class with a few
  layers of width 64 and random weights, on CPU, surveys it, and compares the compiled
  encoder with the eager one in 11 or more calls. No tower test loads a published
  checkpoint, and none has the published sizes. Architectures with the same encoder
  class share a test. A tower test does not build the rest of the model.
- **Engine recipe**: `mmc_testing/recipes.py` can write a tiny checkpoint of the
  architecture, for tests in real engines. Architectures without a recipe were not run
  in an engine.

| architecture | blocks | tower tests | engine recipes | remark |
|---|---|---|---|---|
{survey}

## Stays eager

vLLM's own class serves these, with no change.

| architecture | why |
|---|---|
{eager}

## Cannot be tested here

These are registered for a survey, like those above, but their encoders cannot be built
or run where the tests run, on CPU. No test stands behind them.

| architecture | why |
|---|---|
{cannot}
"""


SUPPORTED_VERSIONS = """\
# Supported versions of vLLM

The package is used with vLLM from {low} to below {high}, on Python 3.11 to 3.14. With
another vLLM it steps aside with one WARNING, and `VLLM_MMC_ALLOW_UNTESTED_VLLM=1` tries
that vLLM all the same. `pip install 'vllm-mmc[cuda]'` brings a vLLM of this range.

| vLLM | how it is tested |
|---|---|
{how}

**vLLM 0.33 has no wheel for CPU.** The tests run its Python over the CPU operators of
0.32 (`tools/overlay_vllm.py`), with torch 2.13. They show that this package fits the
Python of 0.33. They do not show that it fits the operators of 0.33, nor torch 2.14, for
which that release is made. On a GPU, 0.32.0 alone has run.

## What differs

{differs}

Where a release lacks a private name that this package uses, or has it in another form,
the region, the encoder or the feature steps aside with a reason
(`vllm_mmc/compat/symbols.py`). vLLM 0.31 has `monitor_torch_compile` without `tag`: its
log lines of a compilation do not name the region. With it, the audio encoder of
Phi-4-multimodal runs eager: its block keeps attention weights.

## What was run

Tests by directory, as `pytest --record-versions docs/test-versions.json` counted them;
"files" says how many of the directory's files were run.

{results}
"""

HOW = {
    "0.31": "`make test VLLM=0.31.0`: its wheel for CPU, in front of that of 0.32",
    "0.32": "`make test`: its wheel for CPU; pages and census are of this release",
    "0.33": "`make test-next`: its Python over the operators of 0.32",
}


def supported_versions() -> str:
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    differs = [
        f"- vLLM {release} does not have {_listed(LACKS[release])}."
        for release in LACKS
    ]
    differs += [
        f"- vLLM {release} has, beside those of the page of "
        f"[architectures](architectures.md), {_listed(towers)}. Their encoders are "
        "surveyed. There are tower tests of the classes of all these encoders, but for "
        f"{_listed(name for name, found in towers.items() if not found)}."
        for release, towers in ADDS.items()
    ]
    recorded = json.loads((HERE / "test-versions.json").read_text())
    results = []
    for version, files in recorded.items():
        results += [f"### vLLM {version}\n", "| | files | passed | skipped | failed |"]
        results.append("|---|---|---|---|---|")
        for directory in sorted({str(Path(file).parent) for file in files}):
            of = {f: r for f, r in files.items() if str(Path(f).parent) == directory}
            there = len(list((HERE.parent / directory).glob("test_*.py")))
            counts = [
                str(sum(r.get(outcome, 0) for r in of.values()))
                for outcome in ("passed", "skipped", "failed")
            ]
            columns = directory, f"{len(of)} of {there}", *counts
            results.append(f"| {' | '.join(columns)} |")
        where = {
            f"{r['date']}, torch {r['torch']}, Python {r['python']}, {r['processor']}"
            for r in files.values()
        }
        results.append("\n" + "; ".join(sorted(where)) + ".\n")
    return NOTE + SUPPORTED_VERSIONS.format(
        low=low,
        high=high,
        how="\n".join(f"| {release} | {how} |" for release, how in HOW.items()),
        differs="\n".join(differs),
        results="\n".join(results).rstrip(),
    )


def _listed(names: Iterable[str]) -> str:
    *first, last = [f"`{name}`" for name in sorted(names)]
    return f"{', '.join(first)} and {last}" if first else last


CPU_ATTENTION = """\
# Attention on CPU

Milliseconds of one call of encoder attention: vLLM's wrapper, and this package's op
with the provider that it chooses by itself. Each table is one file of
[benchmarks/results](../benchmarks/results), of one machine. Calls take turns; medians,
and the least in brackets
([how](../benchmarks/README.md#3-milliseconds-of-attention-on-cpu)). A case is lengths
of items x heads x head size. Files whose name has `grid` in it hold many more cases and
are not shown.

A kind of CPU without a table has not been measured. That is so of CPUs with AMX: their
path is tested with emulated instructions and in plain C++, and was not run on such a
CPU ([design](design.md#attention)).
{tables}"""

CPU_ATTENTION_TABLE = """
## {title}

{cpu}: {cores} cores, {threads}, PyTorch {torch}; {file}.

| case | dtype | vLLM | ours | vLLM ÷ ours | provider |
|---|---|---|---|---|---|
{rows}
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


def architectures() -> str:
    low, high = (".".join(map(str, bound)) for bound in TESTED)
    kinds: dict[str, list[str]] = {k: [] for k in ("file", "survey", "eager", "cannot")}
    for entry in sorted(CATALOG, key=lambda e: e.architecture.lower()):
        name = entry.architecture
        regions = ", ".join(entry.regions)
        kinds["file"].append(f"| `{name}` | {regions} | {REMARKS.get(name, '')} |")
    for name in sorted(
        surveyed(registry._MULTIMODAL_MODELS, registry._VLLM_MODELS, "")
    ):
        towers = CENSUS[name]
        cannot = [CANNOT[t].rstrip(".") for t in towers if t in CANNOT]
        if towers and len(cannot) == len(towers):
            kinds["cannot"].append(f"| `{name}` | {'; '.join(cannot)} |")
            continue
        built = [TOWERS[t] for t in towers if t in TOWERS]
        blocks = dict.fromkeys(f"`{block}`" for t in built for block in t.blocks)
        remarks = [f"not tested: {why}" for why in cannot]
        remarks += (r[name] for r in (NO_TOWER, REMARKS) if name in r)
        if name in REWRITES:
            module = REWRITES[name].partition(":")[0].rpartition(".")[2]
            remarks.append(f"classes of `models/{module}.py` are exchanged first")
        columns = (
            f"`{name}`",
            ", ".join(blocks),
            ", ".join(t for t in towers if t in TOWERS) or "none",
            ", ".join(k for k, r in RECIPES.items() if _served_as(r) == name),
            "; ".join(remarks),
        )
        kinds["survey"].append(f"| {' | '.join(columns)} |")
    kinds["eager"] += [f"| `{name}` | {why} |" for name, why in sorted(EAGER.items())]
    return NOTE + ARCHITECTURES.format(
        low=low,
        high=high,
        n_all=sum(map(len, kinds.values())),
        **{f"n_{kind}": len(rows) for kind, rows in kinds.items()},
        **{kind: "\n".join(rows) for kind, rows in kinds.items()},
    )


def _served_as(recipe: Recipe) -> str:
    """The architecture that vLLM takes for a recipe's checkpoint."""
    if recipe.engine_args.get("model_impl") == "transformers":
        return "TransformersMultiModalForCausalLM"
    return recipe.architecture


def configuration() -> str:
    meanings = _docstrings_of_fields(Settings)
    rows = [
        f"| `{field.name}` | `{variable(field.name)}` | {field.metadata['allowed']} "
        f"| {_written(field.default)} | {meanings[field.name]} |"
        for field in fields(Settings)
    ]
    *process, last = [f"`{f.name}`" for f in fields(Settings) if f.metadata["process"]]
    return NOTE + CONFIGURATION.format(
        rows="\n".join(rows), process=f"{', '.join(process)} and {last}"
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


def cpu_attention() -> str:
    """One table of each result but those of `--grid`."""
    tables = []
    for path in sorted(RESULTS.glob("*/attention*.json")):
        if "grid" in path.stem:
            continue
        found = json.loads(path.read_text())
        environment = found["environment"]
        clock = environment.get("clock", "wall")
        threads = environment["threads"] if clock == "wall" else 1
        rows = [
            f"| {row['case']} | {row['dtype']} | {_least(row, 'stock')} "
            f"| {_least(row, 'varlen_attention')} "
            f"| {row['ratio']['varlen_attention']:.2f} "
            f"| {', '.join(part[2] for part in row.get('parts', [])) or 'avx512'} |"
            for row in found["rows"]
        ]
        tables.append(
            CPU_ATTENTION_TABLE.format(
                title=f"{path.parent.name}, {path.stem}",
                cpu=environment["cpu"],
                cores=environment["cores"],
                threads=f"{threads} thread{'s' if threads > 1 else ''}, {clock}",
                torch=environment["torch"],
                file=f"[{path.name}](../{path.relative_to(HERE.parent)})",
                rows="\n".join(rows),
            )
        )
    return NOTE + CPU_ATTENTION.format(tables="".join(tables))


def _least(row: dict[str, dict[str, float]], name: str) -> str:
    least = f" ({row['least_ms'][name]:.3g})" if "least_ms" in row else ""
    return f"{row['ms'][name]:.3g}{least}"


API = """\
# What can be imported

Each subpackage offers these names, for instance
`from vllm_mmc.compilation import support_torch_compile`. The site that `make site`
builds has the docstrings here, in the place of lines that start with `:::`.

{rooms}
"""


def api() -> str:
    rooms = []
    for room in ROOMS:
        package = importlib.import_module(f"vllm_mmc.{room}")
        lines = [f"## `vllm_mmc.{room}`", "", package.__doc__]
        own = f"{package.__name__}."
        for name in package.__all__:
            path = f"{own}{package._NAMES[name]}.{name}"
            module = getattr(getattr(package, name), "__module__", own)
            of_vllm = module.startswith("vllm.")
            lines += ["", f"`{name}` is vLLM's own." if of_vllm else f"::: {path}"]
        rooms.append("\n".join(lines))
    return NOTE + API.format(rooms="\n\n".join(rooms))


def index() -> str:
    """The README as a page of the site: links that leave `docs/` become plain text."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    inside = {page.name for page in HERE.iterdir()} | set(PAGES)

    def linked(match: re.Match[str]) -> str:
        target = match[2].partition("#")[0]
        return match[0] if "://" in target or target in inside else match[1]

    return NOTE + re.sub(r"(?<!!)\[([^]]+)\]\(([^)]+)\)", linked, text)


def with_examples(page: str) -> str:
    """The page, with each example as its file is now."""

    def pasted(match: re.Match[str]) -> str:
        lines = (ROOT / match[1]).read_text().splitlines()
        code = "\n".join(x for x in lines if not x.startswith("# SPDX-"))
        language = LANGUAGES.get(Path(match[1]).suffix, "")
        code = code.removeprefix("#!/bin/sh\n")
        start = f"<!-- example: {match[1]} -->"
        return f"{start}\n```{language}\n{code}\n```\n<!-- end -->"

    pattern = r"<!-- example: (\S+) -->\n.*?<!-- end -->"
    return re.sub(pattern, pasted, (HERE / page).read_text(), flags=re.DOTALL)


PAGES = {
    "cpu-attention.md": cpu_attention,
    "supported-models.md": supported_models,
    "supported-versions.md": supported_versions,
    "configuration.md": configuration,
    "architectures.md": architectures,
    "api.md": api,
    "index.md": index,
} | {
    page.name: functools.partial(with_examples, page.name)
    for page in sorted(HERE.glob("*.md"))
    if "<!-- example: " in page.read_text()
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
