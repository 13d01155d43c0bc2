"""The fast paths against the library's own forward, and memory budgets, for every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    ALL,
    ALL_WITH_TEXT,
    FAST_KINDS,
    KINDS,
    NAMES,
    OWN_WEIGHTS,
    TRAINED_BY_STEPS,
    build,
    class_features,
    fits,
    new,
    pairs,
)
from checks import gradient, relative, scaled
from selection import by_turns
from tiny_backbones import WITH_VISION_BLOCKS
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone
from adapt.engine import text

WITH_FAST_PATHS, TRAINED, WITH_TEXT = (
    tuple(name for name in names if name not in OWN_WEIGHTS) for names in (ALL, TRAINED_BY_STEPS, ALL_WITH_TEXT)
)
ONE_CLASS_AT_A_TIME = 1  # bytes: nothing fits, so every class is a part of its own


@pairs(WITH_TEXT, FAST_KINDS)
def test_both_paths_give_the_same_features(method: str, backbone: Backbone) -> None:
    fast, plain = (build(method, backbone, fast=fast) for fast in (True, False))
    assert (fast.text_path, plain.text_path) == ("fast", "plain")
    assert scaled(class_features(fast), class_features(plain)) < 1e-5


@pairs(TRAINED, FAST_KINDS)
def test_both_paths_give_the_same_gradients(method: str, backbone: Backbone, images: Tensor, labels: Tensor) -> None:
    fast, plain = (gradient(build(method, backbone, fast=fast), images, labels) for fast in (True, False))
    assert relative(fast, plain) < 1e-5


@pairs(WITH_FAST_PATHS, WITH_VISION_BLOCKS)
def test_both_vision_paths_give_the_same_features(method: str, backbone: Backbone, images: Tensor) -> None:
    fast, plain = (build(method, backbone, fast=fast).eval() for fast in (None, False))
    assert (fast.vision_path, plain.vision_path) == ("fast", "plain")
    assert scaled(fast.image_features(images), plain.image_features(images)) < 1e-5


@pairs(TRAINED, WITH_VISION_BLOCKS)
def test_both_vision_paths_give_the_same_gradients(
    method: str, backbone: Backbone, images: Tensor, labels: Tensor
) -> None:
    fast, plain = (gradient(build(method, backbone, fast=fast), images, labels) for fast in (None, False))
    assert relative(fast, plain) < 1e-5


@pytest.mark.parametrize("method", [name for name in WITH_TEXT if fits(name, "hf_siglip")])
def test_the_fast_path_is_refused_where_text_is_not_causal(method: str, hf_siglip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"fast=True.*SiglipModel cannot use the fast path \(it is not causal"):
        adapt.wrap(hf_siglip, new(method), NAMES, fast=True)
    assert adapt.wrap(hf_siglip, new(method), NAMES).text_path == "plain"


@pairs([name for name in TRAINED_BY_STEPS if name in ALL_WITH_TEXT], KINDS)
@by_turns("fast", [None, False])
def test_classes_in_parts_give_the_same_features_and_gradients(
    method: str, backbone: Backbone, fast: bool | None, images: Tensor, labels: Tensor, monkeypatch: Any
) -> None:
    parts: list[int] = []
    in_parts = text.in_parts

    def counted(chosen: Any, *args: Any, **kwargs: Any) -> Tensor:
        parts.append(len(chosen))
        return in_parts(chosen, *args, **kwargs)

    whole = build(method, backbone, fast=fast)
    chunked = build(method, backbone, fast=fast, text_memory=ONE_CLASS_AT_A_TIME)
    expected = class_features(whole), gradient(whole, images, labels)
    monkeypatch.setattr(text, "in_parts", counted)
    assert scaled(class_features(chunked), expected[0]) < 1e-5
    assert relative(gradient(chunked, images, labels), expected[1]) < 1e-5
    assert max(parts) == len(NAMES)  # what the frozen model knows needs fewer, as it keeps nothing
    with torch.no_grad():
        assert scaled(class_features(chunked.eval()), class_features(whole.eval())) < 1e-5
