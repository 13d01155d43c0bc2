"""Which tests run: with `make test`, with `make test-ci` (pytest with `--ci`), and with `make test-full` (`--full`).

A test that is marked `full` repeats at length what a shorter test checks too: `make test` leaves it out. A test
parametrised `by_turns` meets all these values in the full run; otherwise it runs once for each set of its other
parameters, and takes one of these values, or a few, drawn by its name, and in `make test-ci` a quarter of them.
`pytestmark = pytest.mark.by_turns("new")` says so of a fixture's parameters, for all tests of a file. What is marked
`at_length` takes minutes: only the full run has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import ceil, prod
from random import Random
from typing import Any

import pytest

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def by_turns(
    names: str | tuple[str, ...], values: Iterable[Any], take: int = 1, one_in: int = 4, **options: Any
) -> Decorator:
    """Parametrise a test as `pytest.mark.parametrize` does, by values that all runs but the full one take a few of.

    `make test` takes one, or `take`; `make test-ci` one of each four, or `one_in`.
    """
    mark = pytest.mark.by_turns(*([names] if isinstance(names, str) else names), take=take, one_in=one_in)
    return lambda test: mark(pytest.mark.parametrize(names, values, **options)(test))


def left_out(items: Iterable[pytest.Item], ci: bool = False) -> set[pytest.Item]:
    """Return the tests that only the full run has, or those that `make test-ci` has not."""
    repetitions = defaultdict[object, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("at_length" if ci else "full") is None:
            repetitions[_behaviour(item)].append(item)
    return set(items).difference(*(_drawn(alike, ci) for alike in repetitions.values()))


def _drawn(alike: list[pytest.Item], ci: bool) -> list[pytest.Item]:
    """Return those that run: the same in each process and at each time, and others for other tests."""
    marks = [marker.kwargs for marker in alike[0].iter_markers("by_turns")]
    take = prod(mark.get("take", 1) for mark in marks)
    if ci:
        take = max(take, ceil(len(alike) / prod(mark.get("one_in", 4) for mark in marks)))
    return Random(alike[0].nodeid).sample(alike, min(take, len(alike)))


def _behaviour(item: pytest.Item) -> object:
    """Return what is the same in tests of which one stands for all."""
    varied = {name for marker in item.iter_markers("by_turns") for name in marker.args}
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if varied.isdisjoint(params):
        return item
    other = {name: value for name, value in params.items() if name not in varied}
    return item.parent, item.originalname, *(f"{name}={value!r}" for name, value in sorted(other.items()))
