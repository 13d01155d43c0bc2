"""Modules of a method that are no part of its adapter, because only training needs them or because they are frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn


class HoldsAside(nn.Module):
    """A base of methods with such modules, which move with the method but are neither its parameters nor its state."""

    _aside: tuple[nn.ModuleDict, ...] = ()  # in a tuple, so that torch does not register them

    def set_aside(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Hold `modules` by name, in place of earlier ones, and move them to `device`."""
        self._aside = (nn.ModuleDict(modules).to(device),)

    @property
    def aside(self) -> nn.ModuleDict:
        """The modules by name; none before they are set aside."""
        return self._aside[0] if self._aside else nn.ModuleDict()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.aside._apply(fn, recurse)
        return super()._apply(fn, recurse)


class LearnsAside(HoldsAside):
    """A base of methods whose modules set aside are trained too; checkpoints keep them, and adapters do not."""

    def trains(self) -> Iterable[nn.Parameter]:
        return [*self.parameters(), *self.aside.parameters()]

    def training_state(self) -> dict[str, Tensor]:
        return self.aside.state_dict()
