# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm_mmc project
"""A device that is not there, on which each wait of the host is seen.

A tensor of the device says that it is on PyTorch's `PrivateUse1` device, and keeps its
values on the CPU. So a whole encoder runs, its values can be compared, and whatever
makes the host wait for a real device is an error in a layer: a value that is read, a
shape that depends on values, a mask as an index, a copy that is not asynchronous, an
operation that mixes tensors of host and device. Inside of layers no data comes from the
host either. Outside of layers waits are noted.

    with as_on_cuda(), fake_device() as device:
        model = device.take(load_model(vllm_config))
        found = model.embed_multimodal(**device.put(inputs))

The body of an encoder CUDA graph is as a layer: call it inside `device.layers()`.

PyTorch keeps a device for the life of a process: use this in a forked test.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from vllm.v1.attention.backends import fa_utils
from vllm.v1.attention.ops import vit_attn_wrappers as stock_ops

from mmc_testing.as_on_cuda import vllm_varlen
from vllm_mmc.attention import vit_attn_wrappers
from vllm_mmc.compilation.decorators import is_compiled_class
from vllm_mmc.sizes import buckets

_T = TypeVar("_T")
DEVICE = torch.device("privateuseone", 0)
ASKS_FOR_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
MASKS = (torch.bool, torch.uint8)
OPS = {"vllm": stock_ops, "vllm_mmc": vit_attn_wrappers}
"""Namespace -> the module that has the Python functions of its operators."""


class WaitsForDevice(RuntimeError):
    """The host would wait for the device."""


class DeviceTensor(torch.Tensor):
    """A tensor of the device.

    Attributes:
        values: the same on the CPU.
    """

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "DeviceTensor":
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({[*self.shape]}, {self.dtype})"

    def tolist(self) -> Any:
        """PyTorch's own passes no dispatcher."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """As `tolist`. PyTorch's own refuses a tensor that is not on the host."""
        raise WaitsForDevice(f"{_place()}: numpy() of a tensor that is not on the host")

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} of a DeviceTensor outside of `fake_device`")


class FakeDevice(TorchDispatchMode):
    """Runs what the host tells the device.

    Attributes:
        waits: outside of layers: "module:line: why".
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._depth = 0

    def take(self, model: nn.Module) -> nn.Module:
        """Move parameters and buffers; our regions run eager, and are layers."""
        moved: dict[torch.Tensor, torch.Tensor] = {}
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    if tensor is None:
                        continue
                    if tensor not in moved:
                        new: torch.Tensor = DeviceTensor(tensor.detach())
                        if isinstance(tensor, nn.Parameter):
                            new = nn.Parameter(new, requires_grad=False)
                        moved[tensor] = new
                    kept[name] = moved[tensor]
            if is_compiled_class(type(module)):
                module.do_not_compile = True
                module.forward = self._as_layer(module.forward)
        return model

    def put(self, tree: _T) -> _T:
        """The same with its tensors on the device."""
        moved: _T = pytree.tree_map_only(torch.Tensor, DeviceTensor, tree)
        return moved

    def get(self, tree: _T) -> _T:
        """The same with its tensors on the CPU; a test does not wait."""
        moved: _T = pytree.tree_map_only(DeviceTensor, lambda x: x.values, tree)
        return moved

    def kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What the device does: `function` of tensors on the CPU, unseen."""

        @functools.wraps(function)
        def launched(*args: Any, **kwargs: Any) -> Any:
            if not any(map(_is_ours, pytree.tree_leaves((args, kwargs)))):
                return function(*args, **kwargs)
            return self.put(function(*self.get(args), **self.get(kwargs)))

        return launched

    @contextlib.contextmanager
    def layers(self) -> Iterator[None]:
        """Inside, the host may not wait, and has no data for the device."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _as_layer(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def layer(*args: Any, **kwargs: Any) -> Any:
            with self.layers():
                return forward(*args, **kwargs)

        return layer

    def _waits(self, why: str) -> None:
        line = f"{_place()}: {why}"
        if self._depth or buckets.current() is not None:
            raise WaitsForDevice(line)
        self.waits.append(line)

    def __torch_dispatch__(
        self, func: Any, _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = pytree.tree_leaves((args, kwargs))
        if not any(_is_ours(x) or _names_ours(x) for x in given):
            return func(*args, **kwargs)
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        asked = kwargs.get("device")
        makes = _names_ours(asked)
        if body := getattr(OPS.get(func.namespace), func.overloadpacket.__name__, None):
            with self:  # of what an operator does, too, the host may wait
                return body(*args, **kwargs)
        with self:  # under inference mode, operators made of others come here whole
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        if func is torch.ops.aten.copy_.default:
            self._check_copy(args[1], args[0], *args[2:], **kwargs)
        elif func is torch.ops.aten._to_copy.default and asked is not None:
            self._check_copy(args[0], makes, kwargs.get("non_blocking"))
        else:
            self._check(func, args, tensors)
        if makes:
            kwargs["device"] = torch.device("cpu")
        found = func(*self.get(args), **self.get(kwargs))
        if asked is not None:
            return self.put(found) if makes else found
        if func is torch.ops.aten.copy_.default:
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, self.put(found))

    def _check_copy(
        self, source: torch.Tensor, target: Any, non_blocking: bool | None = None
    ) -> None:
        to_device = target if isinstance(target, bool) else _is_ours(target)
        if _is_ours(source) == to_device:
            return
        direction = "from" if to_device else "to"
        if not non_blocking or self._depth:
            self._waits(f"a copy {direction} the host")

    def _check(self, func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
        name = func.overloadpacket.__name__
        if "index" in name and isinstance(args[1], (list, tuple)):
            # Its tag is of the case that an index is a mask.
            asks = any(x is not None and x.dtype in MASKS for x in args[1])
        else:
            asks = bool(ASKS_FOR_VALUES & {*func.tags})
        if asks:
            self._waits(f"{name} asks for values")
        if any(x.dim() and not _is_ours(x) for x in tensors):
            self._waits(f"{name} takes a tensor from the host")


def _is_ours(x: Any) -> bool:
    return isinstance(x, DeviceTensor)


def _names_ours(x: Any) -> bool:
    return isinstance(x, torch.device) and x.type == DEVICE.type


def _place() -> str:
    """The nearest module and line that is not PyTorch's."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename:
        assert frame.f_back is not None
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    return f"{module}:{frame.f_lineno}"


class _Event:
    """One that has not arrived yet."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return False


@functools.cache
def register() -> None:
    """Tell PyTorch of the device, for the life of the process."""
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend()


@contextlib.contextmanager
def fake_device() -> Iterator[FakeDevice]:
    """The device is there."""
    register()
    with (
        mock.patch.object(torch, "Event", _Event),
        FakeDevice() as device,
        mock.patch.object(
            fa_utils, "flash_attn_varlen_func", device.kernel(vllm_varlen), create=True
        ),
    ):
        # A tensor that Python's numbers make is copied from the host: let it be seen.
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
