"""Turns on a frozen model: calls that do not edit its modules run side by side, one that does runs alone.

A turn lasts for one forward, or the recomputation of one block, and never while a caller's own code runs.
The modes of the methods on a model have turns of their own, taken before those on the model itself.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

T = TypeVar("T")


class _Turns:
    """The turns of one model by thread, each of which may nest its own.

    A thread that waits to be alone goes before those that come later to share.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing: dict[int, int] = {}  # how deep each thread is inside
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
                if me in self._sharing:  # two such would wait for each other
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
    """Return the models that are frozen and edited as one: a vision LLM's two models also serve by themselves."""
    return list(model.values()) if isinstance(model, nn.ModuleDict) else [model]


def sharing(model: nn.Module) -> AbstractContextManager[None]:
    """Run while no call edits `model`."""
    return _entered(_TURNS, model, _Turns.shared)


def alone(model: nn.Module) -> AbstractContextManager[None]:
    """Run while no other thread's call runs on `model`. Raises RuntimeError in a thread that already shares it."""
    return _entered(_TURNS, model, _Turns.alone)


def copied_alone(owner: T, model: nn.Module, memo: dict[int, object]) -> T:
    """Return a deep copy of an object that `model` belongs to, while no other thread has it frozen or edited."""
    copied = memo[id(owner)] = object.__new__(type(owner))
    with alone(model):
        vars(copied).update(copy.deepcopy(vars(owner), memo))
    return copied


def keeping_modes(model: nn.Module) -> AbstractContextManager[None]:
    """Run while no other thread turns methods on `model` from training to evaluation, or back."""
    return _entered(_MODES, model, _Turns.shared)


def changing_modes(model: nn.Module) -> AbstractContextManager[None]:
    """Run while no other call on `model` reads a method's mode. Raises RuntimeError in a thread that keeps them."""
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
