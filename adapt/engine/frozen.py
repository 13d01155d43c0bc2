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
        self._training: list[nn.Module] = []
        self._checkpointing: list[nn.Module] = []
        self._trainable: list[nn.Parameter] = []

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._note(model)
                self._set(False)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._set(True)
                    self._training, self._checkpointing, self._trainable = [], [], []

    def _note(self, model: nn.Module) -> None:
        for module in modules_of(model):
            if module.training:
                self._training.append(module)
            if "grad_checkpointing" in vars(module) and module.grad_checkpointing:
                self._checkpointing.append(module)
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad:
                    self._trainable.append(parameter)

    def _set(self, to: bool) -> None:
        for module in self._training:
            module.training = to
        for module in self._checkpointing:
            module.grad_checkpointing = to  # type: ignore[assignment]
        for parameter in self._trainable:
            parameter.requires_grad_(to)


_HOLDS: WeakKeyDictionary[nn.Module, _Hold] = WeakKeyDictionary()
