"""A bound on what building may allocate, so that no file, and no setting, asks for more than there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adapt.engine.memory import free_bytes, readable_bytes
from adapt.errors import AdaptError

_TIMES = 4  # building may draw its tensors more than once, as for copies to start anew from
_BESIDE = 2**22  # numbers for what else it computes, such as the features of one image
_LEAST = 512  # numbers that each new tensor counts as: many empty ones take time as well
_BYTES = 4  # of a number


class _TooMuch(Exception):
    pass


class _Counting(TorchDispatchMode):
    """Counts the numbers of new tensors before they are allocated."""

    def __init__(self, bound: int) -> None:
        super().__init__()
        self.left = bound

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = _new_size(func, args, kwargs or {})
        if size is not None:
            self.left -= max(_LEAST, math.prod(size))
            if self.left < 0:
                raise _TooMuch
        return func(*args, **kwargs or {})


def _new_size(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[int] | None:
    """The size of the tensor that `func` makes out of nothing, where a list of sizes says it; () without memory."""
    arguments = func._schema.arguments
    named = [argument.name for argument in arguments]
    of_tensors = any(str(argument.type) == "Tensor" for argument in arguments)
    if "size" not in named or (of_tensors and not func._schema.name.startswith("aten::new_")):
        return None  # what is computed of tensors is bounded by them
    if str(kwargs.get("device")) == "meta":
        return ()
    position = named.index("size")
    found = args[position] if position < len(args) else kwargs.get("size")
    return found if isinstance(found, list | tuple) else None


@contextmanager
def at_most(held: int) -> Iterator[None]:
    """Inside, new tensors hold little more than the `held` numbers of a file's tensors; AdaptError beyond.

    Raised before the memory is taken.
    """
    try:
        with _Counting(_TIMES * held + _BESIDE):
            yield
    except _TooMuch:
        raise AdaptError(
            f"its settings ask for far more than the {held:,} numbers that its tensors hold; "
            "the file is damaged, or was made by hand"
        ) from None


@contextmanager
def within_memory(device: torch.device, what: str) -> Iterator[None]:
    """Inside, new tensors hold no more than is free on `device`; AdaptError, saying `what` was built, beyond.

    Raised before the memory is taken.
    """
    free = free_bytes(device)
    try:
        with _Counting(free // _BYTES):
            yield
    except _TooMuch:
        raise AdaptError(
            f"the settings of {what} ask for more than the {readable_bytes(free)} of memory that are free: give "
            "smaller ones"
        ) from None
