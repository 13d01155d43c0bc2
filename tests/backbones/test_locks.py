"""Turns on one model: shared side by side, alone one at a time, nested in one thread, and free after an error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from torch import nn

from adapt.backbones.locks import alone, roots, sharing

ENOUGH = 10  # seconds in which a turn that is free has come for sure
Enter = Callable[[nn.Module], AbstractContextManager[None]]


class Elsewhere:
    """A call of another thread, which stays inside until it is told to leave."""

    def __init__(self, enter: Enter, model: nn.Module) -> None:
        self._come, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(enter, model), daemon=True)
        self._thread.start()

    def _run(self, enter: Enter, model: nn.Module) -> None:
        with enter(model):
            self._come.set()
            self._go.wait(ENOUGH)

    def waits(self) -> bool:
        return not self._come.wait(0.05)

    def has_come(self) -> bool:
        return self._come.wait(ENOUGH)

    def leave(self) -> None:
        self._go.set()
        self._thread.join(ENOUGH)


@pytest.fixture
def model() -> nn.Module:
    return nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("here", "there", "together"),
    [(sharing, sharing, True), (sharing, alone, False), (alone, sharing, False), (alone, alone, False)],
)
def test_who_may_be_inside_together(here: Enter, there: Enter, together: bool, model: nn.Module) -> None:
    with here(model):
        with here(model):
            other = Elsewhere(there, model)
            assert other.waits() is not together
        assert other.waits() is not together  # the outer turn is not over
    assert other.has_come()
    other.leave()
    with alone(model):
        pass


def test_a_call_that_is_alone_may_share_with_itself(model: nn.Module) -> None:
    with alone(model):
        with sharing(model), alone(model):
            pass
        other = Elsewhere(sharing, model)
        assert other.waits()
    assert other.has_come()
    other.leave()


def test_who_waits_to_be_alone_goes_before_those_who_come_later(model: nn.Module) -> None:
    with sharing(model):
        editor = Elsewhere(alone, model)
        assert editor.waits()
        later = Elsewhere(sharing, model)
        assert later.waits()
        with sharing(model):  # who is inside already does not wait for those who wait for it
            pass
    assert editor.has_come()
    assert later.waits()
    editor.leave()
    assert later.has_come()
    later.leave()


def test_all_who_wait_go_on(model: nn.Module) -> None:
    with alone(model):
        others = [Elsewhere(sharing, model) for _ in range(3)]
        assert all(other.waits() for other in others)
    assert all(other.has_come() for other in others)  # together: none has left
    for other in others:
        other.leave()


@pytest.mark.parametrize("enter", [sharing, alone])
def test_an_error_ends_a_turn(enter: Enter, model: nn.Module) -> None:
    with pytest.raises(KeyError), enter(model):
        raise KeyError
    other = Elsewhere(alone, model)
    assert other.has_come()
    other.leave()


def test_a_call_that_shares_cannot_become_one_that_edits(model: nn.Module) -> None:
    with sharing(model), pytest.raises(RuntimeError, match="cannot become one that edits it"), alone(model):
        pass
    other = Elsewhere(alone, model)
    assert other.has_come()
    other.leave()


def test_models_side_by_side_have_turns_of_their_own() -> None:
    both = nn.ModuleDict({"eyes": nn.Linear(1, 1), "mouth": nn.Linear(1, 1)})
    assert roots(both) == [both["eyes"], both["mouth"]]
    assert roots(both["eyes"]) == [both["eyes"]]
    with alone(both["eyes"]):
        whole, other = Elsewhere(alone, both), Elsewhere(sharing, nn.Linear(1, 1))
        assert other.has_come()  # another model is another matter
        assert whole.waits()
    assert whole.has_come()
    part = Elsewhere(sharing, both["mouth"])
    assert part.waits()
    whole.leave()
    assert part.has_come()
    for each in (part, other):
        each.leave()
