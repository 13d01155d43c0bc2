"""A stand-in for an accelerator: tensors that say they are on another device, and compute on the CPU.

`with attached():` there is a device `lazy:0`, a name that torch knows and that needs no driver. As on a GPU, a tensor
there does not mix with one of the CPU: what a GPU would refuse raises DeviceMismatch, with the operation. There is no
double precision, as on MPS. Values are real, so that whatever Python reads of them goes its usual way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy", 0)  # whose backward pass runs in the calling thread, as the CPU's
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten.set_.source_Tensor}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor}
_INDEXED |= {_aten._index_put_impl_.default}
_NO_SCALARS = {_aten.cat.default, _aten.stack.default}  # a number of the CPU does not enter these


class DeviceMismatch(RuntimeError):
    """Tensors of two devices in one operation."""


class Far(Tensor):
    """A tensor of the stand-in; `near` is the same memory as a tensor of the CPU."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        if near.dtype == torch.float64:
            raise TypeError(f"{DEVICE} has no float64, as MPS has none")
        far = Tensor._make_subclass(cls, near, dispatch_device=True, device_for_backend_keys=DEVICE)
        far.near = near
        return far

    def tolist(self) -> Any:
        """Which torch leaves to the classes of tensors that are not its own."""
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE if operation is torch.ops.prim.device.default else _run(operation, args, kwargs or {})


class _Attached(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return DEVICE if operation is torch.ops.prim.device.default else _run(operation, args, kwargs or {})


class _Module:
    """What torch has for each kind of device, such as `torch.cuda`."""

    rng = torch.zeros(3, dtype=torch.uint8)

    @staticmethod
    def get_rng_state(device: torch.device) -> Tensor:
        return _Module.rng.clone()

    @staticmethod
    def set_rng_state(state: Tensor, device: torch.device) -> None:
        _Module.rng = state.clone()

    @staticmethod
    def get_device_name(device: torch.device) -> str:
        return "Stand-In"


@contextmanager
def attached() -> Iterator[torch.device]:
    """Inside, tensors can be made on the stand-in and moved there. It has no autocast."""
    asked, autocast, modules = torch.is_autocast_enabled, torch.autocast, torch.get_device_module

    def is_autocast_enabled(kind: str = "cuda") -> bool:
        return kind != DEVICE.type and asked(kind)

    def autocast_of(kind: str, *options: Any, **named: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else autocast(kind, *options, **named)

    def module_of(device: torch.device | str) -> Any:
        return _Module if torch.device(device).type == DEVICE.type else modules(device)

    with pytest.MonkeyPatch.context() as patch, _Attached():
        patch.setattr(torch, "get_device_module", module_of)
        patch.setattr(torch, "is_autocast_enabled", is_autocast_enabled)
        patch.setattr(torch, "autocast", autocast_of)
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device=)` is seen here too
        try:
            yield DEVICE
        finally:
            torch._C._set_only_lift_cpu_tensors(False)


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    far = [each for each in tensors if isinstance(each, Far)]
    asked = kwargs.get("device")
    goes_far = bool(far) if asked is None else torch.device(asked).type == DEVICE.type
    if operation not in _COPIES:
        _check(operation, args, tensors, far)
    if operation is _aten.copy_.default:
        goes_far = isinstance(args[0], Far)
    if asked is not None and goes_far:
        kwargs = kwargs | {"device": torch.device("cpu")}
    given = {id(each.near): each for each in far}
    found = operation(*tree_map_only(Far, lambda each: each.near, args), **tree_map_only(Far, lambda x: x.near, kwargs))
    if operation is _aten._to_copy.default and asked is not None and goes_far is not bool(far):
        found = found.clone()
    if not goes_far:
        return found
    return tree_map_only(Tensor, lambda each: given[id(each)] if id(each) in given else Far(each), found)


def _check(operation: Any, args: Any, tensors: list[Tensor], far: list[Far]) -> None:
    if not far:
        return
    near = [each for each in tensors if not isinstance(each, Far)]
    if operation in _INDEXED and isinstance(args[0], Far):
        indices = [each for each in args[1] if isinstance(each, Tensor)]
        near = [each for each in near if not any(each is index for index in indices)]
    if operation not in _NO_SCALARS:
        near = [each for each in near if each.ndim]
    if near:
        shapes = [tuple(each.shape) for each in near]
        raise DeviceMismatch(f"{operation} takes tensors of {DEVICE} with such of the CPU, of shape {shapes}")
