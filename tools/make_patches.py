# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Make upstream/models/*/change.patch: our encoders as changes of vLLM's own files.

Definitions of `vllm_mmc` are copied into files of the installed vLLM. Names lose their
"Compiled", what only this package has is left out, and imports become vLLM's. The
compiler is then vLLM's `support_torch_compile`, and the attention vLLM's.

The patches are ready for `patch -p1` in the directory that holds `vllm`.
"""

import ast
import builtins
import difflib
import importlib.util
import itertools
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vllm_mmc"
PATCHES = ROOT / "upstream" / "models"
MODELS = "vllm/model_executor/models"

Edits = tuple[tuple[str, str], ...]
"""Text that occurs once -> what takes its place."""


@dataclass(frozen=True)
class File:
    """What changes in one file of vLLM, which may be a new one.

    Attributes:
        module: Our module, below `vllm_mmc`. Another one stands before a name: "a.b:C".
        adds: Definitions of ours. One of the same name in the file is replaced.
        into: Class of the file -> classes of ours, whose methods it gets.
        leaves_out: "Class.method" of ours that the file does not get.
        writes: "Class.method" of the file -> what takes its place: where this package
            has a method for all models.
        removes: Definitions of the file that nothing uses afterwards.
        edits: Further changes, when all of the above is done.
        docstring: Of a new file.
    """

    module: str
    adds: tuple[str, ...] = ()
    into: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leaves_out: tuple[str, ...] = ()
    writes: Mapping[str, str] = field(default_factory=dict)
    removes: tuple[str, ...] = ()
    edits: Edits = ()
    docstring: str = ""


@dataclass(frozen=True)
class Family:
    """One patch.

    Attributes:
        files: Path in the wheel -> what changes there.
        after: Families whose patches come before this one.
    """

    files: Mapping[str, File]
    after: tuple[str, ...] = ()


def compiled(*names: str) -> dict[str, tuple[str, ...]]:
    """Class of vLLM -> its class of ours, which is called `Compiled...`."""
    return {name: (f"Compiled{name}",) for name in names}


# The edits of models whose encoder was Hugging Face's.
TOWER = """\
            self.audio_tower = {}
"""
FLAMINGO_TOWER = """\
            self.audio_tower = AudioFlamingo3Encoder(
                config.audio_config,
            )
"""
BUILD = """\
            tower_config = vllm_config.with_hf_config(config.audio_config)
            if hasattr(config, "quantization_config"):
                # The checkpoint is quantised, but not its tower.
                tower_config.quant_config = None
            self.audio_tower = {}(
                vllm_config=tower_config,
                prefix=maybe_prefix(prefix, "audio_tower"),
            )
"""
QWEN2_AUDIO = """\
    def _process_audio_input(
        self, audio_input: Qwen2AudioInputs
    ) -> tuple[torch.Tensor, ...]:
        if audio_input["type"] == "audio_embeds":
            return tuple(audio_input["audio_embeds"])
        encoder = self.audio_tower
        # The host waits for the device here only.
        frames = host_lengths(audio_input["feature_attention_mask"].sum(-1))
        x = encoder(audio_input["input_features"], frames)
        return self.multi_modal_projector(x).split(encoder.embeddings(frames))

"""
FLAMINGO = """\
    def _process_audio_input(
        self, audio_input: AudioFlamingo3Inputs
    ) -> tuple[torch.Tensor, ...]:
        if audio_input.type == "audio_embeds":
            return tuple(audio_input.audio_embeds)
        features, mask, windows = self._normalize_audio_feature_inputs(audio_input)
        encoder = self.audio_tower
        frames = host_lengths(mask.sum(-1))  # the host waits for the device here only
        lengths = sum_items(encoder.embeddings(frames), np.asarray(windows, np.int64))
        x = self.multi_modal_projector(encoder(features, frames))
        return x.split(lengths.tolist())

"""

FAMILIES = {
    "whisper": Family(
        {
            f"{MODELS}/whisper.py": File(
                "models.whisper",
                into=compiled("WhisperEncoderLayer")
                | {"WhisperEncoder": ("WhisperEncoderBase", "CompiledWhisperEncoder")},
                leaves_out=(
                    "WhisperEncoder.graph_buffers",
                    "WhisperEncoder.forward_graph",
                ),
            )
        }
    ),
    "llama4": Family(
        {
            f"{MODELS}/mllama4.py": File(
                "models.llama4",
                adds=("layers.rotary_embedding:cos_sin", "Llama4VisionMetadata"),
                into=compiled(
                    "Llama4VisionMLP",
                    "Llama4MultiModalProjector",
                    "Llama4VisionPixelShuffleMLP",
                    "Llama4VisionAttention",
                    "Llama4VisionEncoderLayer",
                    "Llama4UnfoldConvolution",
                    "Llama4VisionModel",
                ),
                leaves_out=("Llama4VisionModel.load_weights",),
                removes=("Llama4VisionEncoder.forward",),
            )
        }
    ),
    "qwen3_audio": Family(
        {
            f"{MODELS}/packed_items.py": File(
                "encoder.packed",
                adds=(
                    "Ints",
                    "Lengths",
                    "host_lengths",
                    "item_and_offset",
                    "starts",
                    "sum_items",
                    "cu_seqlens",
                    "on_device",
                    "side_by_side",
                    "whole_groups",
                    "mean_pool",
                ),
                docstring="Index arithmetic of packed items, from their lengths.",
            ),
            f"{MODELS}/qwen3_omni_moe_thinker.py": File(
                "models.qwen3_asr",
                adds=("_after_cnn",),
                into=compiled(
                    "Qwen3OmniMoeAudioEncoderLayer", "Qwen3OmniMoeAudioEncoder"
                ),
                removes=(
                    "Qwen3OmniMoeAudioEncoder.compute_attn_mask_seqlen",
                    "Qwen3OmniMoeAudioEncoder._get_cnn_output_lengths",
                ),
            ),
        }
    ),
    "qwen2_audio": Family(
        {
            f"{MODELS}/whisper_packed.py": File(
                "models.whisper",
                adds=(
                    "encoder.packed:after_convolutions",
                    "encoder.packed:packed_buffers",
                    "PackedWhisperEncoder",
                ),
                docstring="Whisper's encoder over sequences of any length.",
            ),
            f"{MODELS}/qwen2_audio.py": File(
                "models.qwen2_audio",
                adds=("CompiledQwen2AudioEncoder",),
                writes={
                    "Qwen2AudioForConditionalGeneration._process_audio_input": (
                        QWEN2_AUDIO
                    )
                },
                edits=(
                    ("    Qwen2AudioEncoder,\n    Qwen2AudioP", "    Qwen2AudioP"),
                    (
                        TOWER.format("Qwen2AudioEncoder(config.audio_config)"),
                        BUILD.format("Qwen2AudioEncoder"),
                    ),
                ),
            ),
            f"{MODELS}/audioflamingo3.py": File(
                "models.audioflamingo3",
                adds=("CompiledAudioFlamingo3Encoder",),
                writes={
                    "AudioFlamingo3ForConditionalGeneration._process_audio_input": (
                        FLAMINGO
                    )
                },
                removes=(
                    "_build_audio_encoder_attention_mask",
                    "_flatten_valid_audio_embeddings",
                    "AudioFlamingo3ForConditionalGeneration._encode_audio_features",
                    "AudioFlamingo3ForConditionalGeneration._group_audio_embeddings",
                ),
                edits=(
                    (
                        "from transformers.models.qwen2_audio import Qwen2AudioEncoder",
                        "from .qwen2_audio import Qwen2AudioEncoder",
                    ),
                    (FLAMINGO_TOWER, BUILD.format("AudioFlamingo3Encoder")),
                ),
            ),
        },
        after=("whisper", "qwen3_audio"),
    ),
}

CALLS = {
    "activate_": "{0}({1})",
    "apply_rotary_emb": "ApplyRotaryEmb.forward_static({all})",
    "gelu_": "F.gelu({0})",
    "max_seqlen_tensor": 'torch.tensor({0}, dtype=torch.int32, device="cpu")',
    "upcast_for": "{1}",
}
"""Function of ours -> vLLM's or PyTorch's, with the arguments by their numbers."""

TEXT = {
    r"\bCompiled(?=[A-Z])": "",
    r"\((CompiledEncoder|(Chunk|Packed|Window)Layout), ": "(",
    r"\(WhisperEncoderBase\)": "(WhisperEncoder)",
    r"The encoder, also for serving stacks of your own\.": "The audio encoder.",
    r"symbols\.WHISPER_WEIGHTS\.need\(\)": "_load_whisper_layer_weights",
    r"\bvllm_mmc\.compilation\.": "vllm.compilation.",
}
"""What a pattern matches in our files -> vLLM's word, one after the other."""

IMPORTS = {
    "ApplyRotaryEmb": "vllm/model_executor/layers/rotary_embedding/common.py",
    "_load_whisper_layer_weights": f"{MODELS}/ultravox.py",
}
"""Name of vLLM in `CALLS` and `TEXT` -> the file that has it."""

WRITTEN = {"F": "import torch.nn.functional as F"}
"""Name in `CALLS` -> how it is imported, also if our file does not."""

GLUE = {
    "encoder_forward",
    "encoder_plan",
    "ignore_torch_compile",
    "least_share",
    "max_packed_tokens",
    "run_dummy",
    "token_multiple",
}
"""Methods, attributes and decorators that only this package has."""

HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
'''{}'''
""".replace("'''", '"""')

Span = tuple[int, int]
"""The first line, and the line after the last one, counted from 0."""


class Source:
    """A file: where its definitions are, and what it imports.

    Attributes:
        nodes: Name -> definition.
        imports: Name -> the statement that imports it.
    """

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines(keepends=True)
        self.tree = ast.parse(text)
        self.nodes = {name: node for name, node, _ in _definitions(self.tree.body)}
        self.spans = {name: span for name, _, span in _definitions(self.tree.body)}
        self.imports: dict[str, str] = {}
        for node in self.tree.body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for name in node.names:
                one = [ast.alias(name.name, name.asname)]
                if isinstance(node, ast.Import):
                    statement = ast.unparse(ast.Import(one))
                else:
                    statement = ast.unparse(
                        ast.ImportFrom(node.module, one, node.level)
                    )
                self.imports[name.asname or name.name] = statement

    def cls(self, name: str) -> ast.ClassDef:
        node = self.nodes[name]
        assert isinstance(node, ast.ClassDef)
        return node

    def parts(self, cls: str) -> dict[str, Span]:
        """Attributes and methods of a class, with their decorators."""
        return {name: span for name, _, span in _definitions(self.cls(cls).body)}

    def decorators(self, cls: str) -> Span:
        return self.spans[cls][0], self.cls(cls).lineno - 1

    def text(self, span: Span) -> str:
        """Without what only this package has."""
        lines = self.lines[slice(*span)]
        return "".join(line for line in lines if _decorator(line) not in GLUE)


def _decorator(line: str) -> str:
    return line.partition("#")[0].strip().removeprefix("@")


def _definitions(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt, Span]]:
    for node, after in itertools.zip_longest(body, body[1:]):
        first, end = node.lineno, node.end_lineno
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = node.name
            first = min([first, *(d.lineno for d in node.decorator_list)])
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = ast.unparse(targets[0])
            if isinstance(after, ast.Expr):  # its docstring
                end = after.end_lineno
        else:
            continue
        yield name, node, (first - 1, end or first)


@cache
def ours(module: str) -> Source:
    """A module of this package, in vLLM's words."""
    text = (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="ascii")
    while call := next(_calls(ast.parse(text)), None):
        args = [ast.unparse(arg) for arg in (*call.args, *call.keywords)]
        assert isinstance(call.func, ast.Name)
        written = CALLS[call.func.id].format(*args, all=", ".join(args))
        lines = text.splitlines(keepends=True)
        assert call.end_lineno is not None and call.end_col_offset is not None
        rest = lines[call.end_lineno - 1][call.end_col_offset :]
        start = lines[call.lineno - 1][: call.col_offset]
        lines[call.lineno - 1 : call.end_lineno] = [start + written + rest]
        text = "".join(lines)
    for pattern, new in TEXT.items():
        text = re.sub(pattern, new, text)
    return Source(text)


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Those of the functions in `CALLS`, innermost first."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in CALLS
            and not any(inner for arg in node.args for inner in _calls(arg))
        ):
            yield node


class Rewritten:
    """One file of vLLM and what it gets.

    Attributes:
        text: The result.
    """

    def __init__(self, text: str, change: File, homes: Mapping[str, str]) -> None:
        self.change = change
        self.source = Source(text)
        self.replaced: list[tuple[Span, str]] = []
        self.used: dict[str, str] = {}
        """Name that the copied code uses -> how our file imports it."""
        for cls, names in change.into.items():
            self._merge(cls, names)
        self._add()
        for name, text in change.writes.items():
            cls, _, part = name.rpartition(".")
            self._copied(ours(change.module), text)
            self.replaced.append((self.source.parts(cls)[part], text))
        for name in change.removes:
            cls, _, part = name.rpartition(".")
            spans = self.source.parts(cls) if cls else self.source.spans
            self.replaced.append((spans[part], ""))
        lines = self.source.lines.copy()
        for (first, end), new in sorted(self.replaced, key=itemgetter(0), reverse=True):
            lines[first:end] = [new]
        self.text = tidy(
            self._with_imports(edited("".join(lines), change.edits), homes)
        )

    def _ours(self, name: str) -> tuple[Source, str]:
        *other, own = name.split(":")
        return ours(*(other or [self.change.module])), own.removeprefix("Compiled")

    def _copied(self, source: Source, text: str) -> str:
        for node in ast.walk(ast.parse(textwrap.dedent(text))):
            if isinstance(node, ast.Name):
                self.used[node.id] = {**WRITTEN, **source.imports}.get(node.id, "")
        return text

    def _merge(self, cls: str, names: tuple[str, ...]) -> None:
        theirs = self.source.parts(cls)
        ours_too = {part for name in names for part in Source.parts(*self._ours(name))}
        merged: dict[str, list[str]] = {}
        for name in names:
            source, own = self._ours(name)
            for part, span in source.parts(own).items():
                if part in GLUE or f"{cls}.{part}" in self.change.leaves_out:
                    continue
                # A method that the class lacks comes behind the one before it.
                place = part if part in theirs else [*merged, "forward"][-1]
                stays = [] if place in ours_too else [self.source.text(theirs[place])]
                merged.setdefault(place, stays).append(source.text(span))
                self._copied(source, source.text(span))
            if source.cls(own).decorator_list:
                text = source.text(source.decorators(own))
                self.replaced.append((self.source.decorators(cls), text))
                self._copied(source, f"{text}class _: ...\n")
        for part, texts in merged.items():
            self.replaced.append((theirs[part], "\n".join(texts)))

    def _add(self) -> None:
        new = []
        for name in self.change.adds:
            source, own = self._ours(name)
            first, end = source.spans[own]
            lines = source.lines.copy()
            if isinstance(source.nodes[own], ast.ClassDef):
                for part, span in source.parts(own).items():
                    if part in GLUE:
                        lines[slice(*span)] = [""] * (span[1] - span[0])
            text = self._copied(source, "".join(lines[first:end]))
            if own in self.source.spans:
                self.replaced.append((self.source.spans[own], text))
            else:
                new.append(text)
        written = {name.partition(".")[0] for name in self.change.writes}
        places = [self.source.spans[cls][0] for cls in {*self.change.into, *written}]
        place = min(places, default=len(self.source.lines))
        self.replaced.append(((place, place), "\n\n".join(new)))

    def _with_imports(self, text: str, homes: Mapping[str, str]) -> str:
        target = Source(text)
        homes = {**IMPORTS, **homes}
        statements = set()
        for name in self.used.keys() - {*target.nodes, *target.imports, *dir(builtins)}:
            if name in homes:
                module = homes[name].removesuffix(".py").replace("/", ".")
                statements.add(f"from {module} import {name}\n")
            elif self.used[name]:  # otherwise it is a local variable
                statements.add(f"{self.used[name]}\n")
        code = (n for n in target.tree.body if not isinstance(n, ast.Expr))
        place = next(code).lineno - 1
        target.lines[place:place] = sorted(statements)
        return "".join(target.lines)


def edited(text: str, edits: Edits) -> str:
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"occurs {text.count(old)} times instead of once: {old!r}")
        text = text.replace(old, new)
    return text


def tidy(text: str) -> str:
    """Formatted, with sorted imports of what is used, as vLLM's own files are."""
    first_party = "lint.isort.known-first-party=['vllm']"
    for args in (
        ("check", "--fix-only", "--select=I,F401", f"--config={first_party}"),
        ("format",),
        ("check", "--select=F,E501", "--ignore=F541"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *args, "--isolated", "--quiet", "-"],
            input=text,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ValueError(f"ruff {args[0]}: {done.stdout}{done.stderr}")
        text = done.stdout or text  # the last one prints nothing
    if found := re.search(r".*\bvllm_mmc\b.*", text):
        raise ValueError(f"a patch would need this package: {found[0]}")
    return text


@cache
def site_packages() -> Path:
    """Where the installed vLLM is. Nothing is written there."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


def before(name: str) -> dict[str, str]:
    """Path -> text, of the files that the patches before this one change."""
    return {k: v for other in FAMILIES[name].after for k, v in after(other).items()}


@cache
def after(name: str) -> dict[str, str]:
    """Path -> text, of the files that this patch and those before it change."""
    texts = before(name)
    families = [FAMILIES[other] for other in (*FAMILIES[name].after, name)]
    homes = {
        added.split(":")[-1].removeprefix("Compiled"): path
        for family in families
        for path, file in family.files.items()
        for added in file.adds
    }
    for path, change in FAMILIES[name].files.items():
        text = original(path, change, texts) or HEADER.format(change.docstring)
        texts[path] = Rewritten(text, change, homes).text
    return texts


def original(path: str, change: File, texts: Mapping[str, str]) -> str:
    """Of an earlier patch, or of the wheel; empty if the file is a new one."""
    if path in texts:
        return texts[path]
    file = site_packages() / path
    if file.exists() == bool(change.docstring):
        raise ValueError(f"vLLM has {path}, or has it no more")
    return file.read_text() if file.exists() else ""


def patch(name: str) -> str:
    """The unified diff of a family, with one line of context."""
    lines: list[str] = []
    for path, change in FAMILIES[name].files.items():
        old = original(path, change, before(name))
        lines += difflib.unified_diff(
            old.splitlines(keepends=True),
            after(name)[path].splitlines(keepends=True),
            f"a/{path}" if old else "/dev/null",
            f"b/{path}",
            n=1,
        )
    return "".join(lines)


def main() -> None:
    for name in FAMILIES:
        (PATCHES / name).mkdir(parents=True, exist_ok=True)
        (PATCHES / name / "change.patch").write_text(patch(name))


if __name__ == "__main__":
    main()
