"""Checks whether a stored result is still valid, because its inputs (edits and model weights) have not changed.

Edits are compared bit by bit, which notices changes by an optimiser, by `vector_to_parameters`, to a buffer or to a
selection. The backbone is too large for that: its tensors count as changed if their version, memory address or a
sampled entry differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from operator import is_

import torch
from torch import Tensor, nn

from adapt.backbones.split_attention import StandIn
from adapt.edits import Edit


class Values:
    """A detached copy of a value, such as a list of edits, that is later compared with new values."""

    def __init__(self, values: object) -> None:
        self._leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(values)]

    def same(self, values: object) -> bool:
        """Return whether `values` equals the stored copy. Objects that cannot be inspected are compared by identity."""
        leaves = list(_leaves(values))
        return len(leaves) == len(self._leaves) and all(map(_same, self._leaves, leaves))


def _same(stored: object, leaf: object) -> bool:
    if isinstance(stored, Tensor) and isinstance(leaf, Tensor):
        return stored.dtype == leaf.dtype and stored.device == leaf.device and torch.equal(stored, leaf)
    return stored is leaf or (type(stored) is type(leaf) and isinstance(stored, _PLAIN) and stored == leaf)


_PLAIN = (bool, int, float, str, bytes, frozenset, type(None), torch.Size, torch.dtype, torch.device)


def _leaves(value: object) -> Iterator[object]:
    """Yield the leaves of a nested value: tensors, simple values such as numbers, and uninspectable objects."""
    if isinstance(value, StandIn):  # stands for the backbone's own tensors, which `Weights` compares
        yield type(value)
    elif isinstance(value, Edit | nn.Module):
        yield type(value)
        yield from _leaves(vars(value))
    elif isinstance(value, partial):
        yield from _leaves((value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        yield len(value)
        for each in value:
            yield from _leaves(each)
    else:
        yield value


class Weights:
    """A snapshot of a model's tensors and modules that detects later changes much faster than a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._holders = [holder for each in modules for holder in (each._parameters, each._buffers, each._modules)]
        self._held = self._found()
        tensors = [x for x in self._held if isinstance(x, Tensor) and x.numel() and not x.is_meta]
        self._tensors, self._memory = tensors, [*map(_memory, tensors)]
        self._views: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            self._views.setdefault(tensor.device, []).append(_middle(tensor))
        self._values = self._sampled()

    def same(self) -> bool:
        """Return whether the model's modules, tensors and sampled values have not changed since the snapshot."""
        held = self._found()
        return (
            len(held) == len(self._held)
            and all(map(is_, held, self._held))
            and [*map(_memory, self._tensors)] == self._memory
            and all(map(torch.equal, self._sampled(), self._values))
        )

    def _found(self) -> list[object]:
        return [each for holder in self._holders for each in holder.values()]

    def _sampled(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._views.values()]


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _middle(tensor: Tensor) -> Tensor:
    """Return the middle entry of `tensor` along all axes, as a view `(1,)`."""
    view = tensor.data
    for axis, size in enumerate(tensor.shape):
        view = view.narrow(axis, size // 2, 1)
    return view.reshape(1)
