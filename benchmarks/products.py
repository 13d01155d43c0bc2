"""The matrix products of a step, by themselves: what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
Product = Callable[[], Any]


def products_of(step: Callable[[], Any]) -> Callable[[], None]:
    """A function that computes what products `step()` has, on noise of the same shapes, and nothing else."""
    step()  # what later steps remember is not theirs
    with _Recorder() as recorder:
        step()
    products = recorder.products

    def compute() -> None:
        with torch.no_grad():
            for product in products:
                product()

    return compute


class _Recorder(TorchDispatchMode):
    """Notes the products of what is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._noise: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket
        if name in (aten.mm, aten.bmm):
            self._add(args[0], args[1])
        elif name in (aten.addmm, aten.baddbmm):
            self._add(args[1], args[2])
        elif name is aten._scaled_dot_product_flash_attention_for_cpu:
            self._attention(*args[:3], passes=1)
        elif name is aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self._attention(*args[1:4], passes=2)
        elif name is aten.convolution:
            images, weight = args[:2]
            rows = images.numel() // weight[0].numel()
            self._add(images.new_empty(rows, weight[0].numel()), weight.flatten(1).T)
        return func(*args, **kwargs)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, passes: int) -> None:
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        for _ in range(passes):
            self._add(q, k.transpose(1, 2))
            self._add(q.new_empty(len(q), q.shape[1], k.shape[1]), v)

    def _add(self, left: Tensor, right: Tensor) -> None:
        a, b = self._like(left, "left"), self._like(right, "right")
        product = torch.mm if a.ndim == 2 else torch.bmm
        shape = (*a.shape[:-1], b.shape[-1])
        key = ("out", shape)
        if key not in self._noise:
            self._noise[key] = torch.empty(shape, dtype=a.dtype)
        out = self._noise[key]
        self.products.append(lambda: product(a, b, out=out))

    def _like(self, x: Tensor, side: str) -> Tensor:
        key = (side, tuple(x.shape), x.stride())
        if key not in self._noise:
            turned = x.ndim >= 2 and x.stride(-1) != 1
            noise = torch.randn(x.mT.shape if turned else x.shape, dtype=x.dtype)
            self._noise[key] = noise.mT if turned else noise
        return self._noise[key]
