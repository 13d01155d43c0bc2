"""What goes into the blocks of a tower, and what comes out."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.backbones.locks import sharing
from adapt.backbones.tower import Block, Form, Tower
from adapt.engine.hooks import watched


class Doubling(nn.Module):
    def forward(self, x: Tensor, mask: None) -> tuple[Tensor, None]:
        return 2 * x, None


def tower(name: str, length_first: bool) -> Tower:
    modules = [Doubling() for _ in range(3)]
    blocks = tuple(
        Block(each, *[each] * 4, projections={}, batch_first=not length_first, returns=2) for each in modules
    )
    return Tower(name, 3, 1, Form(causal=False, pooling="cls"), blocks)


def forward(of: Tower, x: Tensor) -> Tensor:
    mask = None
    for block in of.blocks:
        x, mask = block.module(x, mask)
    return x


@pytest.mark.parametrize("length_first", [False, True])
def test_blocks_that_are_named_leave_what_they_saw_last(length_first: bool) -> None:
    towers = {name: tower(name, length_first) for name in ("vision", "text")}
    x = torch.randn(2, 5, 3)
    given = x.transpose(0, 1) if length_first else x
    with watched(nn.Identity(), towers, ("vision.0", "vision.2", "text.1")) as seen:
        forward(towers["vision"], torch.zeros_like(given))
        forward(towers["vision"], given)
        assert seen.keys() == {"vision.0", "vision.2"}
        forward(towers["text"], given)
    assert seen.keys() == {"vision.0", "vision.2", "text.1"}
    for name, times in (("vision.0", 1), ("vision.2", 4), ("text.1", 2)):
        before, after = seen[name]
        assert torch.equal(before, times * x)
        assert torch.equal(after, 2 * times * x)
    forward(towers["vision"], torch.zeros_like(given))  # nobody watches any more
    assert torch.equal(seen["vision.0"][0], x)


def test_no_other_threads_call_is_watched() -> None:
    model, entered = nn.Identity(), threading.Event()

    def call(*_: Any) -> None:
        with sharing(model):
            entered.set()

    other = threading.Thread(target=call)
    with watched(model, {}, ()):
        other.start()
        assert not entered.wait(0.05)
    other.join(10)
    assert entered.is_set()
