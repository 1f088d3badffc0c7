# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Private names of vLLM, PyTorch and others are spelled in `vllm_mmc/compat/` alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_mmc
from vllm_mmc.compat import symbols

PACKAGE = Path(vllm_mmc.__file__).parent
FOREIGN = ("vllm", "torch", "transformers", "prometheus_client")

ALLOWED = {
    # nn.Module keeps its state in them since PyTorch 0.1, and pickles them.
    ("compilation/structure.py", "_parameters"),
    ("compilation/structure.py", "_buffers"),
    ("compilation/structure.py", "_modules"),
    # Read in a method that vLLM calls only where it has set it.
    ("attention/mm_encoder_attention.py", "_fa_version"),
    # vLLM's activations, one for each process: forgotten before another tower is
    # measured. Nothing that serves imports the file.
    ("prove/towers.py", "_ACTIVATION_AND_MUL_REGISTRY"),
    ("prove/towers.py", "_ACTIVATION_REGISTRY"),
    ("prove/towers.py", "_dict"),
    # PyTorch's name of all convolutions.
    ("prove/floor.py", "_ConvNd"),
    # What vLLM's processor says of lengths, and how many frames Dynamo has seen.
    ("prove/cases.py", "_get_feat_extract_output_lengths"),
    ("prove/providers.py", "_dynamo"),
    # Python's own.
    ("encoder/on_meta.py", "_getframe"),
}
"""File and private attribute of somebody else's."""

WORDS = {
    "__init__",
    "__post_init__",
    "add",
    "check",
    "fn",
    "info",
    "logger",
    "method",
    "root",
}
"""Names in `symbols` that are common words: only their paths tell them."""

LISTED = {
    name
    for symbol in {*symbols.ALL} - {*symbols.OVERRIDDEN}
    for name in (*symbol.path.replace(":", ".").split(".")[-1:], *symbol.sets)
} - WORDS


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: dict[str, ast.Module]) -> set[str]:
    """Functions, classes, variables and attributes that the package defines."""
    names = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Attribute(ast.Name("self"), name, ast.Store()):
                    names.add(name)
                case ast.Subscript(_, ast.Constant(str(name)), ast.Store()):
                    names.add(name)
    return names


def spelled(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of each foreign private name."""
    overridden = {symbol.name for symbol in symbols.OVERRIDDEN}
    overrides = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in overridden
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == function.name
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                for alias in names:
                    if any(map(private, alias.name.split("."))):
                        yield node.lineno, alias.name
            case ast.ImportFrom(str(module), names) if module.split(".")[0] in FOREIGN:
                for part in (*module.split("."), *(a.name for a in names)):
                    if private(part) or part in LISTED:
                        yield node.lineno, part
            case ast.Attribute(attr=name) if id(node) not in overrides:
                if name in LISTED or (private(name) and name not in own):
                    yield node.lineno, name


def trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_private_names_are_spelled_in_compat_alone() -> None:
    parsed = trees()
    own = own_names(parsed)
    found = {
        f"{file}:{line} {name}"
        for file, tree in parsed.items()
        if not file.startswith("compat/")
        for line, name in spelled(tree, own)
        if (file, name) not in ALLOWED and not name.startswith("_mmc_")
    }
    assert found == set()


def test_the_list_of_exceptions_is_not_longer_than_needed() -> None:
    parsed = trees()
    own = own_names(parsed)
    used = {
        (file, name) for file, tree in parsed.items() for _, name in spelled(tree, own)
    }
    assert used >= ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "from torch._dynamo import mark_dynamic",
        "from vllm.compilation.caching import aot_compile_hash_factors",
        "from vllm.model_executor.models.registry import _VLLM_MODELS",
        "from torch._inductor import config",
        "import torch._dynamo.aot_compile",
        "torch._C.DispatchKeySet",
        "layer.cpu_linear",
        "module._forward_method = 1",
        "super()._mark_tower_model(1)",
        "def f(self): return self._tower_model_names",
    ],
)
def test_what_is_found(code: str) -> None:
    assert list(spelled(ast.parse(code), set()))


@pytest.mark.parametrize(
    "code",
    [
        "def _mark_tower_model(self): return super()._mark_tower_model()",
        "from vllm_mmc.encoder.survey import _private",
        "self.vllm_config, torch.compiler.config",
    ],
)
def test_what_is_not(code: str) -> None:
    assert not list(spelled(ast.parse(code), set()))


def test_every_name_of_compat_is_used() -> None:
    text = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    names = {name for name, value in vars(symbols).items() if value in symbols.ALL}
    assert not {n for n in names if text.count(f"symbols.{n}") == 0}
