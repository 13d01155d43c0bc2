"""Anomaly localisation on damaged drawings: AnoVL's maps beside a centre prior, and the ordinary patch features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import mean, pstdev
from typing import Any

import torch

import adapt
from adapt.data import Item, load
from adapt.data.decoding.masks import mask_of
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.maps import auroc, region_overlap
from adapt.methods import AnoVL
from benchmarks.drawings import backbone
from benchmarks.measure import Row

SEEDS, SHARE, SIDE = (1, 2, 3), 0.5, 64  # each seed draws half of the test images
OWN_WORDS = {"normal": ("clean {}",), "abnormal": ("scratched {}", "stained {}")}
CASES: dict[str, dict[str, object]] = {
    "as published": {},
    "the recipe": {"object": "drawing", "smoothing": 1},
    "the recipe, five steps": {"object": "drawing", "smoothing": 1, "steps": 5},
    "the recipe, own words": {"object": "drawing", "smoothing": 1, "states": OWN_WORDS},
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report AUROC of pixels, overlap of regions and AUROC of images, over three halves of the test images."""
    for spec in ("emoji-defects", "emoji-defects@fluent-3d"):
        test = load(spec).test
        halves = [Random(seed).sample(test, round(SHARE * len(test))) for seed in SEEDS]
        progress(f"{spec}: centre")
        yield _row(f"{spec}: centre", [_centre(half) for half in halves])
        for case, settings in CASES.items():
            progress(f"{spec}: {case}")
            model = adapt.wrap(backbone(), AnoVL(**settings), ("normal", "abnormal"))
            yield _row(f"{spec}: {case}", [evaluate(model, half).figures() for half in halves])


def _centre(items: Sequence[Item]) -> dict[str, float | None]:
    """Return the figures of the guess that defects are near the centre."""
    masks = torch.stack([mask_of(item, backbone().preprocess.placing("nearest"), (SIDE, SIDE)) for item in items])
    far = torch.arange(SIDE) - (SIDE - 1) / 2
    guess = -(far[:, None] ** 2 + far**2).sqrt().expand(len(masks), -1, -1)
    return {"pixel_auroc": auroc(guess.flatten(), masks.flatten()), "pro": region_overlap(guess, masks)}


def _row(case: str, halves: Sequence[dict[str, Any]]) -> Row:
    names = {"pixel_auroc": "pixels", "pro": "regions", "image_auroc": "images"}
    cells = {title: [float(each[name]) for each in halves] for name, title in names.items() if name in halves[0]}
    text = ", ".join(f"{title} {mean(own):.3f} +- {pstdev(own):.3f}" for title, own in cells.items())
    return {"case": case, "text": text, "areas": cells}
