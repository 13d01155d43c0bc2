"""The matrix products of a step on their own: the least that it has to compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Pair = tuple[Tensor, Tensor]


class Products(TorchDispatchMode):
    """A record of the products computed inside it: of linear maps, their gradients, and inside attention.

    Calling it repeats them on noise of the same shapes and layouts, each into memory that is already allocated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[Pair] = []
        self.operators = 0
        """How many of torch's operators ran, of which few are products."""
        self._noise: dict[object, Tensor] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        self.operators += 1
        for left, right in _products(func.overloadpacket, args):
            self.pairs.append((self._like(left), self._like(right)))
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> int:
        return sum(map(_operations, self.pairs))

    @property
    def flops_of_maps(self) -> int:
        """The operations of linear maps: products of two matrices, not of batches of them."""
        return sum(map(_operations, self._maps))

    @property
    def _maps(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair[0].ndim == 2]

    def seconds(self, of_maps: float) -> float:
        """Return the seconds of all products, if those of linear maps alone take `of_maps`, at the same rate."""
        return of_maps * self.flops / self.flops_of_maps

    def __call__(self) -> None:
        self._compute(self.pairs)

    def of_maps(self) -> None:
        """Compute the products of linear maps only."""
        self._compute(self._maps)

    @torch.no_grad()
    def _compute(self, pairs: list[Pair]) -> None:
        for left, right in pairs:
            shape = (*left.shape[:-1], right.shape[-1])
            if shape not in self._noise:
                self._noise[shape] = left.new_empty(shape)
            (torch.mm if left.ndim == 2 else torch.bmm)(left, right, out=self._noise[shape])

    def _like(self, x: Tensor) -> Tensor:
        key = (x.shape, x.stride())
        if key not in self._noise:
            turned = x.stride(-1) != 1
            noise = torch.randn(x.mT.shape if turned else x.shape, dtype=x.dtype)
            self._noise[key] = noise.mT if turned else noise
        return self._noise[key]


def _operations(pair: Pair) -> int:
    return 2 * math.prod(pair[0].shape) * pair[1].shape[-1]


def _products(operation: object, args: tuple[Any, ...]) -> Iterator[Pair]:
    if operation in (aten.mm, aten.bmm):
        yield args[0], args[1]
    elif operation in (aten.addmm, aten.baddbmm):
        yield args[1], args[2]
    elif operation is aten.convolution:  # of patches that do not overlap
        images, weight = args[:2]
        yield images.new_empty(images.numel() // weight[0].numel(), weight[0].numel()), weight.flatten(1).T
    elif operation is aten._scaled_dot_product_flash_attention_for_cpu:
        yield from _attention(*args[:3])
    elif operation is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        yield from [*_attention(*args[1:4])] * 2  # for the weights and values, and for the queries and keys


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Iterator[Pair]:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    yield q, k.mT
    yield q.new_empty(len(q), q.shape[1], k.shape[1]), v


def products_of(step: Callable[[], object]) -> Products:
    """Return the products of a second `step()`: the first may compute what is then cached."""
    step()
    with Products() as products:
        step()
    return products
