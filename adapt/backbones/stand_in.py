"""Stand-ins: linear layers that compute a frozen projection, for libraries (such as peft) that wrap an `nn.Linear`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor, nn

from adapt.backbones.tower import Projection

_GIVEN: ContextVar[Mapping[int, Tensor]] = ContextVar("_GIVEN", default=MappingProxyType({}))  # by id of a stand-in


class StandIn(nn.Linear):
    """A linear layer that computes a frozen projection of the backbone, but stores only one number as its weight.

    Copying, saving or comparing this layer therefore never touches the backbone's weight.
    """

    def __init__(self, projection: Projection) -> None:
        rows, columns = projection.shape
        super().__init__(columns, rows, bias=False, device="meta")
        self.projection = projection
        self.place()

    def place(self) -> None:
        """Set this layer's weight to one number, expanded to the projection's shape, on the backbone's device."""
        device = getattr(self.projection.module, self.projection.weight_name).device
        if self.weight is None or self.weight.device != device:
            number = torch.zeros(1, device=device).expand(self.projection.shape)
            self.weight = nn.Parameter(number, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        given = _GIVEN.get().get(id(self))
        return self.projection(x) if given is None else given

    @contextmanager
    def giving(self, output: Tensor) -> Iterator[None]:
        """Make this layer return the precomputed `output` in the `with` block; other threads are not affected."""
        token = _GIVEN.set({**_GIVEN.get(), id(self): output})
        try:
            yield
        finally:
            _GIVEN.reset(token)

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_parameters": {"weight": None, "bias": None}}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.place()


class ViewedWeight(StandIn):
    """A `StandIn` with the real weight, as a view or a dequantised copy, for tools that read the layer's weight."""

    def place(self) -> None:
        """Update this layer's weight and bias from the projection, if the backbone's weight was moved or replaced."""
        weight, bias = self.projection.weight, self.projection.bias
        if self.weight is None or self.weight.data_ptr() != weight.data_ptr():
            self.weight = nn.Parameter(weight, requires_grad=False)
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
