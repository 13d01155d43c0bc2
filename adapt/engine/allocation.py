"""Limits on the memory that building a model may allocate, so that a file or setting cannot ask for too much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from adapt.common.devices import free_bytes
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes

_TIMES = 4  # building may draw its tensors more than once, such as for copies
_BESIDE = 2**22  # more numbers, for computing such as the features of one image
_LEAST = 512  # numbers that a tensor counts at least: many empty ones take time as well
_BYTES = 4  # bytes of a number


class _Bounded(TorchDispatchMode):
    """A context manager that raises AdaptError before the total number of elements of new tensors exceeds `bound`."""

    def __init__(self, bound: int, message: str) -> None:
        super().__init__()
        self.left, self.message = bound, message

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler, which takes a second, to keep it out of this

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        size = _new_size(func, args, kwargs or {})
        if size is not None:
            self.left -= max(_LEAST, math.prod(size))
            if self.left < 0:
                raise AdaptError(self.message)
        return func(*args, **kwargs or {})


def _new_size(func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> Sequence[int] | None:
    """Return the size of the tensor that `func`, such as zeros, allocates (() on the meta device), or else None."""
    arguments = func._schema.arguments
    names = [argument.name for argument in arguments]
    of_tensors = any(str(argument.type) == "Tensor" for argument in arguments)
    if "size" not in names or (of_tensors and not func._schema.name.startswith("aten::new_")):
        return None  # a tensor computed from others is bounded by them
    if str(kwargs.get("device")) == "meta":
        return ()
    position = names.index("size")
    size = args[position] if position < len(args) else kwargs.get("size")
    return size if isinstance(size, list | tuple) else None


def at_most(numbers: int) -> TorchDispatchMode:
    """Return a context manager that limits the total elements of new tensors to a small multiple of `numbers`.

    `numbers` is the number of elements in a file. Raises AdaptError in the `with` block before the limit is exceeded.
    """
    return _Bounded(
        _TIMES * numbers + _BESIDE,
        f"its settings ask for far more than the {numbers:,} numbers that its tensors hold; the file is damaged, or "
        "was made by hand",
    )


def within_memory(device: torch.device, what: str) -> TorchDispatchMode:
    """Return a context manager that limits the total size of new tensors to the free memory of `device`.

    Raises AdaptError in the `with` block before the limit is exceeded; `what` names the object to build in the message.
    """
    free = free_bytes(device)
    return _Bounded(
        free // _BYTES,
        f"the settings of {what} ask for more than the {readable_bytes(free)} of memory that are free: give smaller "
        "ones",
    )
