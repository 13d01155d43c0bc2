"""Boxes of things by a classifier, from windows of an image."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny_backbones
import torch
from PIL import Image
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.models.image_model import ImageModel
from adapt.models.prediction import Prediction, Query, judged
from adapt.models.windows import SIZES, STEP, windows

NAMES = ("red", "blue", "nothing")


class ByColour(ImageModel):
    """A classifier that is as sure of red and of blue as they fill the image."""

    def _predictions(self, pixels: Tensor, query: Query) -> Any:
        read = self.backbone.preprocess
        spread, middle = (torch.tensor(each)[:, None, None] for each in (read.std, read.mean))
        colours = (pixels * spread + middle).mean((2, 3))
        for red, _, blue in colours.tolist():
            shares = {"red": red - blue, "blue": blue - red}
            name, share = max(shares.items(), key=lambda pair: pair[1])
            top = ((name, max(share, 0.0)),)
            yield judged(Prediction(name, max(share, 0.0), top, NAMES.index(name)), query.threshold)


def model_of() -> ImageModel:
    made = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.find("zero_shot")(), NAMES).eval()
    made.__class__ = ByColour
    return made  # type: ignore[return-value]


def picture(*things: tuple[tuple[int, int, int, int], tuple[int, int, int]], size: tuple[int, int] = (96, 64)) -> Any:
    image = Image.new("RGB", size, (0, 0, 0))
    for box, colour in things:
        image.paste(colour, box)
    return image


def test_windows_are_squares_that_cover_the_image() -> None:
    places = [*windows(96, 64)]
    assert places[:3] == [(0, 0, 64, 64), (16, 0, 80, 64), (32, 0, 96, 64)]
    seen = np.zeros((len(SIZES), 64, 96), bool)
    for left, upper, right, lower in places:
        assert right - left == lower - upper
        assert 0 <= left < right <= 96
        assert 0 <= upper < lower <= 64
        seen[[round(64 * share) for share in SIZES].index(right - left), upper:lower, left:right] = True
    assert seen.all()
    lefts = sorted({left for left, _, right, _ in places if right - left == 16})
    assert max(place[2] for place in windows(110, 100) if place[3] - place[1] == 100) == 110  # nothing is left out
    assert max(b - a for a, b in pairwise(lefts)) <= 16 * STEP + 1


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 300), (40, 10)])
def test_no_window_of_a_small_or_thin_image_is_classified_twice(size: tuple[int, int]) -> None:
    places = [*windows(*size)]
    assert len(places) == len({*places})


def test_an_image_smaller_than_a_window_has_some() -> None:
    assert set(windows(2, 1)) == {(0, 0, 1, 1), (1, 0, 2, 1)}


def test_things_are_boxed_once_with_their_probability() -> None:
    image = picture(((0, 0, 32, 32), (255, 0, 0)), ((64, 32, 96, 64), (0, 0, 255)))
    [answer] = model_of().find(image, 0.95)
    assert [(box.name, box.edges) for box in answer.boxes or ()] in (
        [("red", (0, 0, 32, 32)), ("blue", (64, 32, 96, 64))],
        [("blue", (64, 32, 96, 64)), ("red", (0, 0, 32, 32))],
    )
    assert answer.plain()["boxes"][0]["probability"] == pytest.approx(1.0, abs=0.02)
    assert answer.class_name in ("red", "blue")


class ByBothColours(ImageModel):
    """A classifier of several labels an image, for which half of a colour is enough."""

    def _predictions(self, pixels: Tensor, query: Query) -> Any:
        read = self.backbone.preprocess
        spread, middle = (torch.tensor(each)[:, None, None] for each in (read.std, read.mean))
        for red, _, blue in (pixels * spread + middle).mean((2, 3)).tolist():
            top = tuple(sorted((("red", min(2 * red, 1.0)), ("blue", min(2 * blue, 1.0))), key=lambda each: -each[1]))
            above = tuple(name for name, share in top if share >= (query.threshold or 0.5))
            yield Prediction(*top[0], top, class_names=above)


def test_a_window_of_several_labels_has_a_box_for_each() -> None:
    model = model_of()
    model.__class__ = ByBothColours
    image = picture(((0, 0, 64, 64), (255, 0, 255)), ((64, 0, 96, 64), (0, 0, 0)))
    [answer] = model.find(image, 0.95)
    names = [box.name for box in answer.boxes or ()]
    assert sorted(set(names)) == ["blue", "red"]
    assert set(answer.class_names or ()) == {"red", "blue"}
    [answer] = model.find(picture(((0, 0, 64, 64), (255, 0, 60))), 0.95)
    assert {box.name for box in answer.boxes or ()} == {"red"}
    assert answer.class_names == ("red",)


def test_an_image_without_a_sure_window_has_no_box() -> None:
    [answer] = model_of().find(picture())
    assert answer.boxes == ()
    assert answer.class_name == "none"


def test_what_boxes_are_not_of() -> None:
    with pytest.raises(AdaptError, match="boxes are of the classes in windows"):
        Query(boxes=True, maps=True)
    with pytest.raises(AdaptError, match="tda draws maps, grades images or remembers earlier ones"):
        adapt.wrap(tiny_backbones.backbone("open_clip"), methods.find("tda")(), NAMES).find(picture())
    graded = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.find("uniqa")(), NAMES)
    with pytest.raises(AdaptError, match="uniqa draws maps, grades images"):
        graded.find(picture())
