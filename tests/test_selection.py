"""What `make test` takes of all tests, and what it leaves to the full run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from selection import left_out


@dataclass(eq=False)
class Item:
    """Stands for a test whose backbones come by turns, two for each method."""

    method: str
    backbone: str
    full: bool = False
    parent: str = "test_file.py"
    originalname: str = "test_it"

    @property
    def nodeid(self) -> str:
        return f"{self.parent}::{self.originalname}[{self.method}-{self.backbone}]"

    @property
    def callspec(self) -> SimpleNamespace:
        return SimpleNamespace(params={"method": self.method, "backbone": self.backbone})

    def get_closest_marker(self, name: str) -> bool | None:
        return (self.full and name == "full") or None

    def iter_markers(self, name: str) -> Iterator[pytest.Mark]:
        yield pytest.mark.by_turns("backbone", take=2).mark


def test_each_method_meets_some_backbones_and_what_is_marked_full_waits() -> None:
    repeated = [Item(method, backbone) for method in ("coop", "lora") for backbone in "abcde"]
    one, full = Item("gda", "a"), Item("gda", "b", full=True)
    items: list[Any] = [*repeated, one, full]
    waiting = left_out(items)
    assert full in waiting
    assert one not in waiting
    assert Counter(item.method for item in repeated if item not in waiting) == {"coop": 2, "lora": 2}
    assert left_out(items) == waiting  # drawn alike in every process
    assert len(left_out(items, ci=True)) == 6  # two of five of each method run, as `one_in` and `take` ask, and others
    assert full not in left_out(items, ci=True)
