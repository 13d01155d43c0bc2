"""Learned tokens on the plain path, in towers of blocks that do nothing but keep what they are handed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.backbones.tower import Block, Form, Tower
from adapt.edits import Attention, Tokens
from adapt.engine.plan import plan
from adapt.engine.tokens import _change_input, entered, masked
from adapt.prompts import Prompt

FIRST, SECOND = torch.full((2, 3), 7.0), torch.full((2, 3), 8.0)
PROMPTS = [
    Prompt((1, 2, 3, 4), (None, 0, 1, None), range(3, 4)),
    Prompt((1, 2, 3), (None, 1, None), range(2, 3)),
]


class Keeping(nn.Identity):
    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


def tower(name: str, length_first: bool, **parts: Any) -> Tower:
    modules = [Keeping() for _ in range(3)]
    blocks = tuple(Block(each, *[each] * 4, projections={}, batch_first=not length_first) for each in modules)
    return Tower(name, 3, 1, Form(causal=name == "text", pooling="cls"), blocks, **parts)


def forward(of: Tower, x: Tensor, length_first: bool) -> list[Tensor]:
    """What each block is handed, and what comes out, all `(b, l, d)`."""
    if of.pre_norm is not None:
        x = of.pre_norm(x)
    x = x.transpose(0, 1) if length_first else x
    for block in of.blocks:
        x = block.module(x)
    seen = [*(block.module.seen for block in of.blocks), x]
    return [each.transpose(0, 1) for each in seen] if length_first else seen


@pytest.mark.parametrize("length_first", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_tokens_stand_after_the_patches_until_the_last_block(length_first: bool, normed: bool, per_image: bool) -> None:
    vision, x = tower("vision", length_first, pre_norm=nn.Identity() if normed else None), torch.randn(4, 5, 3)
    first = FIRST.expand(4, 1, 2, 3)[:, 0] * torch.arange(4.0)[:, None, None] if per_image else FIRST
    asked = plan(vision, [Tokens(first), Tokens(SECOND, block=1)])
    with entered(vision, asked, ()):
        one, two, three, out = forward(vision, x, length_first)
    assert torch.equal(one, torch.cat([x, first.expand(4, 2, 3)], dim=1))
    assert torch.equal(two, torch.cat([x, SECOND.expand(4, 2, 3)], dim=1))
    assert torch.equal(three, two)
    assert torch.equal(out, x)
    assert torch.equal(forward(vision, x, length_first)[0], x)  # all hooks are gone


@pytest.mark.parametrize("length_first", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_tokens_take_the_places_that_prompts_keep(length_first: bool, per_class: bool) -> None:
    embedding = nn.Identity()
    text, x = tower("text", length_first, text=SimpleNamespace(embedding=embedding)), torch.randn(2, 5, 3)
    values = torch.randn(2, 2, 3) if per_class else torch.randn(2, 3)
    asked = plan(text, [Tokens(values), Tokens(2 * values, block=2)])
    with entered(text, asked, PROMPTS):
        one, _, three, _ = forward(text, embedding(x), length_first)
    of_rows = values if per_class else values.expand(2, 2, 3)
    for found, times in ((one, 1), (three, 2)):
        expected = x.clone()
        expected[0, 1:3], expected[1, 1] = times * of_rows[0], times * of_rows[1, 1]
        assert torch.equal(found, expected)
    assert torch.equal(embedding(x), x)


def test_which_vision_tokens_are_learned() -> None:
    seen: list[Tensor] = []
    edit = Attention(0, lambda scores, queries, keys: seen.extend((queries, keys)) or scores)
    asked = plan(tower("vision", False), [Tokens(FIRST), edit])
    scores = torch.randn(4, 1, 6, 6)
    assert torch.equal(masked(tower("vision", False), asked, (), edit)(scores), scores)
    assert [each.tolist() for each in seen] == 2 * [4 * [False] + 2 * [True]]


@pytest.mark.parametrize("names_seen", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_which_text_tokens_are_learned_and_what_they_see(names_seen: bool, causal: bool) -> None:
    seen: list[Tensor] = []
    edit = Attention(0, lambda scores, queries, keys: seen.extend((queries, keys)) or scores, names_seen)
    text = Tower("text", 3, 1, Form(causal=causal, pooling="end"), tower("text", False).blocks)
    scores = masked(text, plan(text, [Tokens(FIRST), edit]), PROMPTS, edit)(torch.zeros(2, 1, 5, 5))
    assert seen[0].tolist() == [[[False, True, True, False, False]], [[False, True, False, False, False]]]
    assert torch.equal(seen[0], seen[1])
    visible = torch.ones(2, 5, 5).tril() if causal else torch.ones(2, 5, 5)
    if names_seen:
        visible[0, 1:3, 3] = visible[1, 1, 2] = 1  # learned tokens of each row, and its name after them
    assert torch.equal(scores[:, 0] == 0, visible.bool())


def test_what_else_a_block_is_handed_stays() -> None:
    class Listening(nn.Module):
        def forward(self, *handed: Any) -> tuple[Any, ...]:
            return handed

    block = Listening()
    _change_input(block, lambda x: x + 1)
    assert block(1, "a mask", None) == (2, "a mask", None)
