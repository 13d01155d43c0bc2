"""Edits sorted by where they act; two that claim one place are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapt import AdaptError
from adapt.edits import Attention, Edit, Replace, Tokens
from adapt.engine.plan import plan

SHARED, PER_CLASS, PER_IMAGE = (Tokens(torch.zeros(shape)) for shape in ((2, 4), (3, 2, 4), (5, 1, 2, 4)))
DEEP = Tokens(torch.zeros(2, 4), block=1)
LINEAR = nn.Linear(4, 4)


def attention(names_seen: bool = False) -> Attention:
    return Attention(0, lambda scores, queries, keys: scores.softmax(-1), names_seen)


def test_edits_are_found_by_their_place() -> None:
    asked = plan([SHARED, DEEP, Replace(1, "q", LINEAR), attention()])
    assert asked.entering is SHARED
    assert asked.overwriting == {1: DEEP}
    assert asked.replaced == {1: {"q": LINEAR}}
    assert list(asked.attention) == [0]


@pytest.mark.parametrize(
    ("edits", "images", "prefix_per_class"),
    [
        ([], None, False),
        ([SHARED, DEEP], None, False),
        ([PER_CLASS], None, True),
        ([SHARED, Tokens(torch.zeros(3, 2, 4), block=1)], None, True),
        ([PER_IMAGE], 5, False),
        ([SHARED, attention()], None, False),
        ([SHARED, attention(names_seen=True)], None, True),
    ],
)
def test_what_prompts_can_share(edits: list[Edit], images: int | None, prefix_per_class: bool) -> None:
    asked = plan(edits)
    assert (asked.images, asked.prefix_per_class) == (images, prefix_per_class)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([SHARED, PER_CLASS], "learned tokens to enter one tower"),
        ([SHARED, DEEP, DEEP], "the same place of a block: 1"),
        ([Replace(0, "q", LINEAR), Replace(0, "q", LINEAR)], "the same place of a block: 'q'"),
        ([SHARED, attention(), attention()], "the same place of a block: 0"),
        ([DEEP], "that none have entered"),
        ([attention()], "that none have entered"),
    ],
)
def test_edits_that_do_not_fit_together_are_refused(edits: list[Edit], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        plan(edits)
