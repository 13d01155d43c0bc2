"""What waits together is computed together, and no more of it than may be."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

from adapt.models.prediction import Query
from adapt.serving import worker
from adapt.serving.predict_requests import Asked, Batcher, Classifying


class Adapters:
    """Stands for adapters: answers an image by itself once it may, and notes the sizes of its passes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def predictions(self, pixels: Any, query: Query) -> Any:
        self.sizes.append(len(pixels))
        self.begun.set()
        assert self.go.wait(30)
        return pixels


def asked(adapters: Any, *pixels: Any, top_k: int = 5) -> Asked:
    return Asked(Classifying(adapters, Query(top_k)), pixels)


@pytest.fixture
def adapters() -> Adapters:
    return Adapters()


def test_those_that_wait_go_together_in_parts_of_the_most(adapters: Adapters) -> None:
    passed: list[int] = []
    batcher = Batcher(4, passed.append)
    first = batcher.ask(asked(adapters, "a")).answer
    assert adapters.begun.wait(30)
    rest = [batcher.ask(asked(adapters, *each)).answer for each in ("bc", "d", "e", "fgh", "i")]
    adapters.go.set()
    assert [list(each.result(30)) for each in (first, *rest)] == [
        list(each) for each in ("a", "bc", "d", "e", "fgh", "i")
    ]
    assert adapters.sizes == passed == [1, 3, 2, 3]  # those of the fewest images first
    batcher.close()


def test_a_request_of_more_than_the_most_is_answered_in_parts(adapters: Adapters) -> None:
    passed: list[int] = []
    batcher = Batcher(2, passed.append)
    adapters.go.set()
    assert batcher.ask(asked(adapters, *"abcde")).answer.result(30) == [*"abcde"]
    assert adapters.sizes == passed == [2, 2, 1]
    batcher.close()


def test_other_adapters_and_other_wishes_go_by_themselves(adapters: Adapters) -> None:
    batcher, other = Batcher(9), Adapters()
    other.go.set()
    first = batcher.ask(asked(adapters, "a")).answer
    assert adapters.begun.wait(30)
    rest = [batcher.ask(each).answer for each in (asked(other, "b"), asked(adapters, "c", top_k=2), asked(other, "d"))]
    adapters.go.set()
    assert [each.result(30) for each in (first, *rest)] == [["a"], ["b"], ["c"], ["d"]]
    assert (adapters.sizes, other.sizes) == ([1, 1], [2])
    batcher.close()


def test_those_that_gave_up_are_left_out(adapters: Adapters) -> None:
    batcher = Batcher(4)
    first = batcher.ask(asked(adapters, "a")).answer
    assert adapters.begun.wait(30)
    given_up, kept = batcher.ask(asked(adapters, "b")).answer, batcher.ask(asked(adapters, "c")).answer
    assert len(batcher) == 2
    assert given_up.cancel()
    adapters.go.set()
    assert (first.result(30), kept.result(30)) == (["a"], ["c"])
    with pytest.raises(CancelledError):
        given_up.result(30)
    assert adapters.sizes == [1, 1]
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more(adapters: Adapters) -> None:
    batcher = Batcher(4)
    answers = [batcher.ask(asked(adapters, each)).answer for each in "abc"]
    adapters.go.set()
    batcher.close()
    assert [each.result(0) for each in answers] == [["a"], ["b"], ["c"]]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.ask(asked(adapters, "d"))


def test_memory_is_given_back_once_nobody_asks(adapters: Adapters, monkeypatch: pytest.MonkeyPatch) -> None:
    given, at_rest = list[int](), threading.Event()
    monkeypatch.setattr(worker, "_IDLE", 0.05)
    monkeypatch.setattr(worker, "give_back", lambda kept: given.append(kept) or at_rest.set())
    batcher = Batcher(4)
    adapters.go.set()
    for _ in range(2):
        assert at_rest.wait(30)
        at_rest.clear()
        assert batcher.ask(asked(adapters, *"ab")).answer.result(30) == [*"ab"]
    assert at_rest.wait(30)
    assert given == [0] * 3  # once after each request, not all the time
    batcher.close()
