"""Which tests `make test` leaves to `make test-full`, which is pytest with `--full`.

A test that is marked `full` repeats at length what a shorter test checks too: only the full run has it. A test
parametrised `by_turns` meets all these values in the full run; otherwise it runs once for each set of its other
parameters, and takes one of these values, or a few, drawn by its name. `pytestmark = pytest.mark.by_turns("new")` says
so of a fixture's parameters, for all tests of a file. `make test-ci` is the full run without what is marked
`at_length`, as `one_in` marks most values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import prod
from random import Random
from typing import Any

import pytest

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def by_turns(names: str | tuple[str, ...], values: Iterable[Any], take: int = 1, **options: Any) -> Decorator:
    """Parametrise a test as `pytest.mark.parametrize` does, by values of which `make test` takes one, or `take`."""
    mark = pytest.mark.by_turns(*([names] if isinstance(names, str) else names), take=take)
    return lambda test: mark(pytest.mark.parametrize(names, values, **options)(test))


def one_in(count: int, values: Iterable[Any]) -> list[Any]:
    """Return parameters for `values`, of which `make test-ci` takes the first of each `count`."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.at_length if place % count else ()
        )
        for place, value in enumerate(values)
    ]


def left_out(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Return the tests that only the full run has."""
    repetitions = defaultdict[object, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("full") is None:
            repetitions[_behaviour(item)].append(item)
    return set(items).difference(*map(_drawn, repetitions.values()))


def _drawn(alike: list[pytest.Item]) -> list[pytest.Item]:
    """Return those that run: the same in each process and at each time, and others for other tests."""
    take = prod(marker.kwargs.get("take", 1) for marker in alike[0].iter_markers("by_turns"))
    return Random(alike[0].nodeid).sample(alike, min(take, len(alike)))


def _behaviour(item: pytest.Item) -> object:
    """Return what is the same in tests of which one stands for all."""
    varied = {name for marker in item.iter_markers("by_turns") for name in marker.args}
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if varied.isdisjoint(params):
        return item
    other = {name: value for name, value in params.items() if name not in varied}
    return item.parent, item.originalname, *(f"{name}={value!r}" for name, value in sorted(other.items()))
