"""Damaged adapters of every method: none ends in a traceback, none says something else, none takes long or much."""

from __future__ import annotations

import pytest
from faults import adapters, corrupt
from selection import by_turns

SEEDS = 4  # of each of the 16 kinds of damage to each adapter


def _refused_or_equal(found: list[adapters.Case]) -> None:
    bad = [case for case in found if case.bad]
    assert bad == [], f"{len(bad)} of {len(found)}, such as\n{bad[0]}\n{bad[0].outcome.message}"


@by_turns("name", adapters.NAMES, take=8)
def test_a_few_damaged_adapters_are_refused_or_harmless(name: str) -> None:
    _refused_or_equal(list(adapters.cases(name, corrupt.ALL[adapters.NAMES.index(name) % 8 :: 8], [100])))


@pytest.mark.faults
@pytest.mark.parametrize("name", adapters.NAMES)
def test_damaged_adapters_are_refused_or_harmless(name: str) -> None:
    found = list(adapters.cases(name, corrupt.ALL, range(SEEDS)))
    print(adapters.summary(found))
    _refused_or_equal(found)
