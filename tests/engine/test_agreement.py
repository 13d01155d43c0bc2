"""The fast path is compared with the library's own forward before it serves, on the shortest and the longest prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone
from adapt.methods import ZeroShot

NAMES = ("goldfish", "red panda", "a name that is much longer than the other ones")


def turned(backbone: Backbone, length: int | None, angle: float) -> Backbone:
    """The library's features of prompts of that many tokens (of all, if None) are turned by about `angle`."""
    encode, end = backbone.encode_text, backbone.tokenize([""]).max()

    def off(ids: Tensor) -> Tensor:
        features = encode(ids)
        chosen = torch.ones(len(ids), dtype=torch.bool) if length is None else ids[:, length - 1] == end
        across = features.roll(1, -1)
        return torch.where(chosen[:, None], features + angle * across * features.norm() / across.norm(), features)

    backbone.encode_text = off
    return backbone


def lengths(backbone: Backbone) -> list[int]:
    return sorted(len(ZeroShot().prompts(backbone.tokenizer, name)[0].ids) for name in NAMES)


@pytest.mark.parametrize("which", ["all", "shortest", "longest"])
def test_a_tower_that_computes_otherwise_takes_the_plain_path(which: str, open_clip: Backbone) -> None:
    short, _, long = lengths(open_clip)
    other = turned(open_clip, {"all": None, "shortest": short, "longest": long}[which], 0.01)
    assert adapt.wrap(other, ZeroShot(), NAMES).text_path == "plain"
    with pytest.raises(AdaptError, match="differ from the library's own forward on two prompts"):
        adapt.wrap(other, ZeroShot(), NAMES, fast=True)


def test_differences_of_rounding_are_let_pass(open_clip: Backbone) -> None:
    assert adapt.wrap(turned(open_clip, None, 1e-6), ZeroShot(), NAMES).text_path == "fast"


def test_a_tower_in_low_precision_may_differ_by_its_rounding_and_no_more(open_clip: Backbone) -> None:
    open_clip.model.bfloat16()
    assert adapt.wrap(open_clip, ZeroShot(), NAMES).text_path == "fast"
    assert adapt.wrap(turned(open_clip, None, 0.5), ZeroShot(), NAMES).text_path == "plain"
