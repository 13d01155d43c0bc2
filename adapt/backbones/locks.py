"""Locks on a frozen model: calls that only read the model run side by side, and a call that edits it runs alone.

A lock is held for one forward pass, or for the recomputation of one block, but never while a caller's own code runs. A
second lock, taken before the first, protects the training or evaluation modes of the methods on a model.

A model is frozen for the duration of calls; its flags are restored when the last of these calls ends.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from adapt.backbones.tower import modules_of

T = TypeVar("T")


class _Turns:
    """A reentrant readers-writer lock, which coordinates the threads that use one model.

    A thread that waits for exclusive use takes precedence over threads that request shared use later.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing: dict[int, int] = {}  # how many nested holds each thread has
        self._alone: int | None = None
        self._depth = self._waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            if me not in self._sharing and self._alone != me:
                self._changed.wait_for(lambda: self._alone is None and not self._waiting)
            self._sharing[me] = self._sharing.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing[me] -= 1
                if not self._sharing[me]:
                    del self._sharing[me]
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            if self._alone != me:
                if me in self._sharing:  # two threads like this would wait for each other
                    raise RuntimeError("a call that shares the model with others cannot become one that edits it")
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: self._alone is None and not self._sharing)
                finally:
                    self._waiting -= 1
                self._alone = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._alone = None
                    self._changed.notify_all()


_AllTurns = WeakKeyDictionary[nn.Module, _Turns]
_TURNS: _AllTurns = WeakKeyDictionary()
_MODES: _AllTurns = WeakKeyDictionary()


def roots(model: nn.Module) -> list[nn.Module]:
    """Return the modules to lock for `model`: the vision and the language model of a vision LLM, otherwise `model`."""
    return list(model.values()) if isinstance(model, nn.ModuleDict) else [model]


def sharing(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context that holds the shared lock of `model`, so that calls that edit the model have to wait."""
    return _entered(_TURNS, model, _Turns.shared)


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context that holds the exclusive lock of `model`; a thread with the shared lock gets a RuntimeError."""
    return _entered(_TURNS, model, _Turns.alone)


def copied_alone(owner: T, model: nn.Module, memo: dict[int, object]) -> T:
    """Return a deep copy of `owner`, made while no other thread runs or edits its `model`."""
    copied = memo[id(owner)] = object.__new__(type(owner))
    with alone(model):
        vars(copied).update(copy.deepcopy(vars(owner), memo))
    return copied


def keeping_modes(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which no other thread can change the mode (training, evaluation) of methods on `model`."""
    return _entered(_MODES, model, _Turns.shared)


def changing_modes(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context with an exclusive lock, in which methods on `model` can switch between training and evaluation.

    Entering the context raises RuntimeError in a thread that is inside the context of `keeping_modes`.
    """
    return _entered(_MODES, model, _Turns.alone)


@contextmanager
def _entered(
    of: _AllTurns, model: nn.Module, enter: Callable[[_Turns], AbstractContextManager[None]]
) -> Iterator[None]:
    turns = [of.setdefault(root, _Turns()) for root in roots(model)]
    with ExitStack() as stack:
        for each in sorted(turns, key=id):  # in one order, so that two calls never wait for each other
            stack.enter_context(enter(each))
        yield


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
        try:
            with self._lock:
                self._holders += 1
                if self._holders == 1:
                    self._note(model)
                    self._set(False)
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
            parameter.requires_grad = to  # torch.func forbids `requires_grad_` inside its transforms


_HOLDS: WeakKeyDictionary[nn.Module, _Hold] = WeakKeyDictionary()
