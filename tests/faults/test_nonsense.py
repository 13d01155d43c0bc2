"""Adapters, indexes and recipes that make no sense, under right checksums: refused, or answered as they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from faults import nonsense
from selection import by_turns

ADAPTERS = 10  # of each of the 50 that are made otherwise
INDEXES, RECIPES = 100, 100


def _refused_or_answered(cases: Iterable[nonsense.Case]) -> None:
    found = list(cases)
    kinds, seconds = Counter(case.outcome.kind for case in found), max(case.outcome.seconds for case in found)
    print(f"{len(found)} of {found[0].of.partition(' ')[0]}: {dict(kinds)}, at most {seconds:.1f} s")
    bad = [case for case in found if case.bad]
    assert bad == [], f"{len(bad)} of {len(found)}, such as\n{bad[0]}\n{bad[0].outcome.message}"


@by_turns(("name", "kind"), [nonsense.ADAPTERS[0], nonsense.ADAPTERS[8], nonsense.ADAPTERS[-5]])
def test_a_few_adapters_that_make_no_sense(name: str, kind: str) -> None:
    _refused_or_answered(nonsense.adapters(name, kind, range(1000, 1003)))


def test_a_few_indexes_that_make_no_sense() -> None:
    _refused_or_answered(nonsense.indexes(range(1000, 1008)))


def test_a_few_recipes_that_make_no_sense() -> None:
    _refused_or_answered(nonsense.recipes(range(1000, 1004)))


@pytest.mark.faults
@pytest.mark.parametrize(("name", "kind"), nonsense.ADAPTERS)
def test_adapters_that_make_no_sense(name: str, kind: str) -> None:
    _refused_or_answered(nonsense.adapters(name, kind, range(ADAPTERS)))


@pytest.mark.faults
def test_indexes_that_make_no_sense() -> None:
    _refused_or_answered(nonsense.indexes(range(INDEXES)))


@pytest.mark.faults
def test_recipes_that_make_no_sense() -> None:
    _refused_or_answered(nonsense.recipes(range(RECIPES)))
