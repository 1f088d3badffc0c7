# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""Find the regions of an encoder, and the dimensions that vary, by running it.

A class whose instances repeat with equal structure is a region: the outermost one. So
is a single module beside the blocks (a projector, a merger). Each region is called with
inputs of several sizes; what differs between the calls varies.
"""

import enum
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode
from vllm.platforms import current_platform

from vllm_mmc.compat import output_hooks
from vllm_mmc.compilation.arguments import PLAIN, Signature, children, leaves
from vllm_mmc.compilation.decorators import is_compiled_class
from vllm_mmc.compilation.region import RegionSpec
from vllm_mmc.compilation.structure import structure_of

_INDEX = re.compile(r"(\w+_)?(idx|index|layer_id|layer_number|block_id)")
"""Names of int attributes that only say which of several equal layers this one is."""


@dataclass(frozen=True)
class SurveyedRegion:
    """One region and all its instances.

    Attributes:
        spec: What to compile it with.
        paths: Names of the instances, below the root that was surveyed.
    """

    spec: RegionSpec
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What a survey found.

    Attributes:
        regions: What can be compiled.
        eager: Class of a region that stays eager -> why.
    """

    regions: tuple[SurveyedRegion, ...] = ()
    eager: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for `from_json`."""
        regions = [asdict(region) for region in self.regions]
        for region in regions:
            del region["spec"]["shape_invariants"]
        return {"regions": regions, "eager": dict(self.eager)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Survey":
        """Raises KeyError, TypeError or ValueError if `values` are no survey."""
        regions = []
        for region in values["regions"]:
            spec = dict(region["spec"])
            spec["dynamic_dims"] = {
                path: {int(d): shape_id for d, shape_id in dims.items()}
                for path, dims in spec["dynamic_dims"].items()
            }
            for name in ("dynamic_ints", "contiguous", "identity_attrs"):
                spec[name] = tuple(spec[name])
            if not all(_INDEX.fullmatch(name) for name in spec["identity_attrs"]):
                raise ValueError("identity_attrs are names of indices only")
            regions.append(SurveyedRegion(RegionSpec(**spec), tuple(region["paths"])))
        return cls(tuple(regions), dict(values["eager"]))


def survey(root: nn.Module, calls: Sequence[Callable[[], Any]]) -> Survey:
    """Run an encoder eager and find out what of it can be compiled.

    Args:
        root: Holds the encoder; its weights are loaded.
        calls: Each runs the encoder once. Together: the smallest input, larger ones,
            and several items. The first call is made twice: lazy attributes appear
            in it.

    Raises:
        Exception: What a call raises.
    """
    with torch.inference_mode():
        calls[0]()
        found = _find(root)
        with _recorded(found):
            for call in calls:
                call()
    regions, eager = [], {}
    for candidate in found:
        reason = candidate.refusal()
        if reason is None:
            regions.append(candidate.region())
        elif candidate.records:
            eager[candidate.name] = reason
    return Survey(tuple(regions), eager)


# ---------------------------------------------------------------- candidates


class _Candidate:
    """Modules of one structure, and what they were called with."""

    def __init__(
        self, modules: Mapping[str, nn.Module], identity_attrs: Iterable[str] = ()
    ) -> None:
        self.modules = modules
        self.identity_attrs = tuple(sorted(identity_attrs))
        self.leader = next(iter(modules.values()))
        self.name = type(self.leader).__name__
        self.signature = Signature(type(self.leader).forward)
        self.records: list[dict[str, Any]] = []
        self.collects = self.reads = False
        self.digests = [self._digest(m) for m in modules.values()]

    def _digest(self, module: nn.Module) -> str:
        # Not `forward`, which is where a recorder stands.
        ignored = (*self.identity_attrs, "forward")
        return structure_of(module, ignored=ignored).digest

    def record(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        record: dict[str, Any] = {}
        for name, value in self.signature.given((args, kwargs)).items():
            for path, leaf in leaves(value, name):
                record[path] = _seen(leaf)
            record |= {f"{path} (container)": n for path, n in _lengths(value, name)}
        self.records.append(record)
        self.collects |= output_hooks.collect(module)

    def refusal(self) -> str | None:
        """Why these modules are no region; None if they are."""
        if not self.records:
            return "forward is never called"
        if [self._digest(m) for m in self.modules.values()] != self.digests:
            return "a call changes the module's own attributes"
        if opaque := self._opaque():
            return f"{opaque}, which a call may change"
        if self.collects:
            return "transformers collects hidden states or attention weights inside"
        repeated = len(self.modules) > 1
        # oneDNN returns another memory layout than the fake says, and the graph reads
        # wrong values. One dimension has one layout: blocks of conformers are compiled.
        conv = (nn.Conv2d, nn.Conv3d) if repeated else _CONVOLUTIONS
        if current_platform.is_cpu() and any(
            isinstance(m, conv) for m in self.leader.modules()
        ):
            return "a convolution, which runs on CPU as fast without"
        if repeated:
            return None
        if self.reads:
            return "forward depends on the values of a tensor"
        for path in self._paths():
            values = {record.get(path) for record in self.records}
            if path.endswith("(container)") and len(values) > 1:
                return f"{path.partition(' ')[0]} has another length in each call"
            is_number = any(isinstance(v, tuple) and v[0] is int for v in values)
            if is_number and len(values) > 1 and path not in self.signature.names:
                return f"{path} is a number that varies"
        return None

    def _opaque(self) -> str | None:
        """An argument whose parts a survey cannot see, in words."""
        for record in self.records:
            for path, value in record.items():
                if isinstance(value, type) and not issubclass(value, _FIXED):
                    return f"{path} is a {value.__name__}"
        return None

    def region(self) -> SurveyedRegion:
        dims: dict[str, set[int]] = {}
        sizes: dict[tuple[str, int], tuple[int, ...]] = {}
        ints, contiguous = [], []
        for path in self._paths():
            values = [r[path] for r in self.records if path in r]
            tensors = [v for v in values if isinstance(v, _SeenTensor)]
            if tensors and len({len(t.shape) for t in tensors}) == 1:
                shapes = list(zip(*(t.shape for t in tensors), strict=True))
                for dim, seen in enumerate(shapes):
                    if len(set(seen)) > 1:
                        dims.setdefault(path, set()).add(dim)
                        sizes[path, dim] = seen
                layouts = {t.layout for t in tensors}
                if len(layouts) > 1 or not layouts <= _DENSE:
                    contiguous.append(path)
            elif len(set(values)) > 1 and all(
                isinstance(v, tuple) and v[0] is int for v in values
            ):
                ints.append(path)
        ones = [key for key, seen in sizes.items() if 1 in seen]
        spec = RegionSpec(
            name=self.name,
            dynamic_dims={
                path: {d: _shape_id(sizes, ones, (path, d)) for d in sorted(found)}
                for path, found in dims.items()
            },
            unbacked_dims={
                path: [d for p, d in ones if p == path] for path, _ in sorted(ones)
            },
            is_encoder=True,
            surveyed=True,
            dynamic_ints=tuple(ints),
            contiguous=tuple(contiguous),
            identity_attrs=self.identity_attrs,
        )
        return SurveyedRegion(spec, tuple(self.modules))

    def _paths(self) -> list[str]:
        return list(dict.fromkeys(path for record in self.records for path in record))


def _shape_id(
    sizes: Mapping[tuple[str, int], tuple[int, ...]],
    ones: Sequence[tuple[str, int]],
    key: tuple[str, int],
) -> str | None:
    """A name for dimensions that have one size in every call, if they can be 1."""
    if key not in ones:
        return None
    equal = [other for other in ones if sizes[other] == sizes[key]]
    path, dim = equal[0]
    return f"{path}.{dim}" if len(equal) > 1 else None


@dataclass(frozen=True)
class _SeenTensor:
    shape: tuple[int, ...]
    layout: str


_DENSE = {"contiguous", "permuted"}
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_FIXED = (torch.Size, enum.Enum, slice)
"""Leaves that no call changes."""


def _seen(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        shape = tuple(leaf.shape)
        if leaf.storage_offset():  # a graph tells the start of a storage from the rest
            return _SeenTensor(shape, "strided")
        if leaf.is_contiguous():
            return _SeenTensor(shape, "contiguous")
        order = sorted(range(leaf.ndim), key=leaf.stride, reverse=True)
        dense = leaf.permute(order).is_contiguous()
        return _SeenTensor(shape, "permuted" if dense else "strided")
    return (type(leaf), leaf) if isinstance(leaf, PLAIN) else type(leaf)


def _lengths(value: Any, path: str) -> Iterator[tuple[str, int]]:
    parts = children(value)
    if parts is not None:
        yield path, len(parts)
        for suffix, part in parts:
            yield from _lengths(part, path + suffix)


def _find(root: nn.Module) -> list[_Candidate]:
    groups: dict[type[nn.Module], dict[str, nn.Module]] = defaultdict(dict)
    decorated: set[int] = set()
    for name, module in root.named_modules():
        if is_compiled_class(type(module)):  # compiled by a class of this package
            decorated |= {id(m) for m in module.modules()}
        if module is not root and id(module) not in decorated and _is_worth(module):
            groups[type(module)][name] = module
    repeated = [
        group
        for modules in groups.values()
        for group in _of_equal_structure(modules)
        if len(group[0]) > 1
    ]
    # The outermost wins: the larger module first.
    repeated.sort(key=lambda group: -_size(next(iter(group[0].values()))))
    above = _ancestors(root)
    found: list[_Candidate] = []
    covered, around = set(decorated), set[int]()
    compiled = set(decorated)
    for modules, ignored in repeated:
        free = {
            name: module
            for name, module in modules.items()
            if id(module) not in covered and id(module) not in around
        }
        if len(free) < 2:
            continue
        found.append(_Candidate(free, ignored))
        for module in free.values():
            compiled.add(id(module))
            covered |= {id(m) for m in module.modules()}
            around |= above[id(module)]
    for name, module in root.named_modules():
        # It may share a part with a region (vLLM's activations), but not hold one.
        inside = {id(m) for m in module.modules()}
        if module is root or id(module) in covered or inside & compiled:
            continue
        if _is_worth(module):
            found.append(_Candidate({name: module}))
            covered |= inside
    return found


def _is_worth(module: nn.Module) -> bool:
    """More than one operation with weights below it, and a `forward` of its own."""
    return (
        type(module).forward is not nn.Module.forward
        and not type(module).__module__.startswith("torch.nn.")
        and any(True for _ in module.children())
        and any(True for _ in module.parameters())
    )


def _of_equal_structure(
    modules: Mapping[str, nn.Module],
) -> list[tuple[dict[str, nn.Module], frozenset[str]]]:
    """The modules of one class by structure; ignored attributes with each group."""
    exact = _by_structure(modules, frozenset())
    indices = frozenset(
        name
        for module in modules.values()
        for part in module.modules()
        for name, value in vars(part).items()
        if type(value) is int and _INDEX.fullmatch(name)
    )
    if len(exact) > 1 and indices:
        merged = _by_structure(modules, indices)
        if len(merged) < len(exact):
            return [(group, indices) for group in merged]
    return [(group, frozenset()) for group in exact]


def _by_structure(
    modules: Mapping[str, nn.Module], ignored: frozenset[str]
) -> list[dict[str, nn.Module]]:
    groups: dict[str, dict[str, nn.Module]] = defaultdict(dict)
    for name, module in modules.items():
        groups[structure_of(module, ignored=ignored).digest][name] = module
    return list(groups.values())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _ancestors(root: nn.Module) -> dict[int, set[int]]:
    above: dict[int, set[int]] = defaultdict(set)
    for module in root.modules():
        for part in module.modules():
            if part is not module:
                above[id(part)].add(id(module))
    return above


class _WatchValues(TorchFunctionMode):
    """Notes if Python looks at a tensor's values. Inside of an operator it may."""

    _READS = frozenset(
        getattr(torch.Tensor, name)
        for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__index__")
    )

    def __init__(self, candidate: _Candidate) -> None:
        super().__init__()
        self._candidate = candidate

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in self._READS:
            self._candidate.reads = True
        return func(*args, **(kwargs or {}))


@contextmanager
def _recorded(candidates: Sequence[_Candidate]) -> Iterator[None]:
    """Note the arguments of each call of the candidates' modules."""
    replaced = []

    def recorder(
        candidate: _Candidate, module: nn.Module, forward: Callable[..., Any]
    ) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            candidate.record(module, args, kwargs)
            with _WatchValues(candidate):
                return forward(*args, **kwargs)

        return record

    try:
        for candidate in candidates:
            for module in candidate.modules.values():
                replaced.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = recorder(candidate, module, module.forward)
        yield
    finally:
        for module, before in replaced:
            del module.__dict__["forward"]
            if before is not None:
                module.__dict__["forward"] = before
