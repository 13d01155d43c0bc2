"""What an answer rests on, by covering parts of an image."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_backbones
import tiny_natives
import torch
import torch.nn.functional as F

import adapt
from adapt import AdaptError, methods
from adapt.backbones.native_eyes import NativeEyes
from adapt.data import load, open_image
from adapt.models.image_model import ImageModel
from adapt.models.occlusion import CELLS, rests_on
from adapt.models.prediction import Query
from benchmarks.explanations import covered, hottest

NAMES = ("goldfish", "red_panda", "sea cucumber")


def model_of(name: str = "zero_shot", **settings: Any) -> ImageModel:
    made: ImageModel = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.find(name)(**settings), NAMES).eval()
    return made


def odds(model: ImageModel, images: torch.Tensor, label: int) -> torch.Tensor:
    p = model(images).softmax(-1)[:, label].double()
    return (p / (1 - p)).log()


def test_a_pixel_has_the_mean_over_the_covers_that_contain_it() -> None:
    model, images = model_of(), torch.randn(2, 3, 32, 32)
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        maps = rests_on(model, images, labels)
        image, cell = images[1], 32 // CELLS
        falls = []
        for top, left in ((4, 8), (4, 12), (8, 8), (8, 12)):  # the covers of a pixel in row 9 and column 13
            changed = image.clone()
            changed[:, top : top + 2 * cell, left : left + 2 * cell] = image.mean((-2, -1), keepdim=True)
            falls.append(odds(model, image[None], 0) - odds(model, changed[None], 0))
    assert maps.shape == (2, 32, 32)
    assert torch.allclose(maps[1, 9, 13].double(), torch.stack(falls).mean(), atol=1e-4)
    cells = F.avg_pool2d(maps, cell)
    assert torch.allclose(F.interpolate(cells[None], scale_factor=cell)[0], maps, atol=1e-6)  # one value for a cell


def test_each_image_has_the_map_of_its_answer() -> None:
    model, images = model_of(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = rests_on(model, images, model(images).argmax(-1))
        given = list(model._predictions(images, Query(explain=True, maps=True)))
    assert torch.equal(torch.stack([each.map.scores for each in given]), expected)
    assert torch.equal(torch.stack([each.map.pixels for each in given]), images)


def test_hot_cells_are_missed_more_than_others() -> None:
    """The deletion test; `python -m benchmarks explanations` has more images, methods and seeds."""
    split = load("emoji")
    model = adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), methods.ZeroShot(), split.class_names).eval()
    transform, draws = model.transform(), torch.Generator().manual_seed(0)
    pixels = torch.stack([transform(open_image(item)) for item in split.test[::60][:8]])
    with torch.no_grad():
        labels = model(pixels).argmax(-1)
        hot = hottest(rests_on(model, pixels, labels))
        left = []
        for order in (hot, torch.rand(hot.shape, generator=draws).argsort()):
            left.append(model(covered(pixels, order[:, :13])).softmax(-1).gather(1, labels[:, None]).mean())
    assert left[0] < left[1] - 0.1


def test_what_cannot_be_covered_is_refused() -> None:
    image = torch.zeros(3, 32, 32)
    with pytest.raises(AdaptError, match="tpt reads views of an image, of which no part can be covered"):
        model_of("tpt").decisive_maps([image])
    eyes = adapt.wrap(NativeEyes(tiny_natives.backbone("smolvlm"), "last"), methods.NearestMean(), NAMES)
    with pytest.raises(AdaptError, match="prepares images by itself, of which no part can be covered"):
        eyes.decisive_maps([image])
    with pytest.raises(AdaptError, match="tda remembers earlier images: leave explain or maps out"):
        model_of("tda").decisive_maps([image])
    with pytest.raises(AdaptError, match="maps are of each image by itself"):
        Query(maps=True, items=True)
