"""Do maps of what answers rest on show it? The deletion test: hot cells of images are covered, and as many others.

The probability of the answer, with shares of the cells covered by the image's mean colour: the hottest ones, or as many
drawn ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt.data import Item, open_image
from adapt.evaluation.intervals import NORMAL, standard_error
from adapt.models.image_model import ImageModel
from adapt.models.occlusion import CELLS, rests_on
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, listed_data, plan_of
from benchmarks.measure import Row
from benchmarks.photographs import listing

SEEDS, TESTED, SHOTS = (1, 2, 3), 24, 16
SHARES = (0.1, 0.2, 0.4)  # of the cells
CASES = {  # a recipe, a backbone, and data
    "coop, drawings": ("coop", "mini-clip", "emoji"),
    "lora, drawings": ("lora", "mini-clip", "emoji"),
    "linear_probe, drawings": ("linear_probe", "mini-clip", "emoji"),
    "coop, photographs": ("coop", "mini-clip", "surfaces"),
    "lora, photographs, 500 steps": ("lora", "mini-clip", "surfaces"),  # in place of 8,000, which take an hour
    "linear_probe, photographs": ("linear_probe", "efficientnet-lite0", "surfaces"),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the probability of the answer before and after, and by how much hot cells lower it more than others."""
    for case, (recipe, backbone, data) in CASES.items():
        probabilities = []
        for seed in SEEDS:
            progress(f"{case}, seed {seed}")
            probabilities.append(_deleted(*_trained(recipe, backbone, data, seed), seed))
        before, hot, drawn = torch.cat(probabilities).unbind(1)  # (images of all seeds, shares) each
        apart = drawn - hot
        told = [f"answer {100 * float(before.mean()):.1f} %"]
        for place, share in enumerate(SHARES):
            error = NORMAL * standard_error(apart[:, place], [str(number) for number in range(len(apart))])
            told.append(
                f"{share:.0%} covered: {100 * float(hot[:, place].mean()):.1f} hot, "
                f"{100 * float(drawn[:, place].mean()):.1f} drawn ({100 * float(apart[:, place].mean()):+.1f} "
                f"± {100 * error:.1f})"
            )
        yield {"case": case, "text": "; ".join(told)}


def _trained(name: str, backbone: str, data: str, seed: int) -> tuple[ImageModel, list[Item]]:
    """Return a trained model, and some images of the test."""
    source = data if data == "emoji" else str(listing(data, seed))
    changes = [("seed", seed), ("data.shots", SHOTS), ("backbone", backbone)]
    changes += [("train.iterations", 500)] * (name == "lora" and data != "emoji")
    recipe = read_recipe(name, changes, source)
    split = listed_data(recipe)
    model = cast("ImageModel", build(recipe, split.class_names, adapt.load_backbone(backbone, "cpu")))
    fit_plan(plan_of(recipe, model, split), None)
    return model.eval(), Random(seed).sample(split.test, TESTED)


def _deleted(model: ImageModel, items: list[Item], seed: int) -> Tensor:
    """Return the probability of the answer `(images, 3, shares)`: whole, without hot cells, without drawn ones."""
    transform, draws = model.transform(), torch.Generator().manual_seed(seed)
    pixels = torch.stack([transform(open_image(item)) for item in items])
    with torch.no_grad():
        whole = model.answers.probabilities(model(pixels))
        labels = whole.argmax(-1)
        hot = hottest(rests_on(model, pixels, labels))
        drawn = torch.rand(hot.shape, generator=draws).argsort()
        told = [whole.gather(1, labels[:, None]).expand(-1, len(SHARES))]
        for order in (hot, drawn):
            falls = []
            for share in SHARES:
                images = covered(pixels, order[:, : round(share * CELLS**2)])
                falls.append(model.answers.probabilities(model(images)).gather(1, labels[:, None])[:, 0])
            told.append(torch.stack(falls, dim=1))
    return torch.stack(told, dim=1)


def hottest(maps: Tensor) -> Tensor:
    """Return the cells `(n, c)` of maps `(n, h, w)` by their mean scores, the highest first."""
    return F.adaptive_avg_pool2d(maps, CELLS).flatten(1).argsort(descending=True)


def covered(pixels: Tensor, cells: Tensor) -> Tensor:
    """Return images `(n, 3, h, w)` with their mean colours in some of their cells `(n, k)`."""
    marked = torch.zeros(len(pixels), CELLS**2).scatter(1, cells, 1.0).view(-1, 1, CELLS, CELLS)
    return torch.where(F.interpolate(marked, pixels.shape[-2:]).bool(), pixels.mean((-2, -1), keepdim=True), pixels)
