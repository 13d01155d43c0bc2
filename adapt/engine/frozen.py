"""Freezing of a model for the duration of calls; its flags are restored when the last of these calls ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from adapt.backbones.tower import modules_of
from adapt.backbones.turns import roots, sharing


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Freeze `model` in the `with` block: evaluation mode, no gradients for weights, no gradient checkpointing.

    Only the gradient checkpointing of the model's library is turned off. All flags are restored afterwards. During the
    block, no other thread can edit `model`, but threads that only run `model` may share the frozen state.
    """
    with sharing(model), ExitStack() as stack:
        for root in roots(model):
            stack.enter_context(_HOLDS.setdefault(root, _Hold())(root))
        yield


class _Hold:
    """The flags (training, `requires_grad`, checkpointing) of a frozen model, restored when its last `frozen` ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._flags: list[tuple[nn.Module | nn.Parameter, str]] = []  # those that were true

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._flags = list(_flags(model))
                for owner, flag in self._flags:
                    setattr(owner, flag, False)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    for owner, flag in self._flags:
                        setattr(owner, flag, True)
                    self._flags = []


def _flags(model: nn.Module) -> Iterator[tuple[nn.Module | nn.Parameter, str]]:
    """Yield each flag of the modules and weights of `model` that is true, as its owner and its name."""
    for module in modules_of(model):
        yield from ((module, flag) for flag in ("training", "grad_checkpointing") if vars(module).get(flag))
        weights = (weight for weight in module._parameters.values() if weight is not None and weight.requires_grad)
        yield from ((weight, "requires_grad") for weight in weights)


_HOLDS: WeakKeyDictionary[nn.Module, _Hold] = WeakKeyDictionary()
