"""Where drawings are damaged: maps of AnoVL beside a centre prior, and the patches of the ordinary stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt.data import Item, load
from adapt.data.decoding.masks import mask_of
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.maps import auroc, region_overlap
from adapt.methods import AnoVL
from benchmarks.drawings import backbone
from benchmarks.text import Row

SEEDS, SHARE, SIDE = (1, 2, 3), 0.5, 64  # of the test images each seed has half
OWN_WORDS = {"normal": ("clean {}",), "abnormal": ("scratched {}", "stained {}")}
CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "the recipe": {"object": "drawing", "smoothing": 1},
    "the recipe, five steps": {"object": "drawing", "smoothing": 1, "steps": 5},
    "the recipe, own words": {"object": "drawing", "smoothing": 1, "states": OWN_WORDS},
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """AUROC of pixels, overlap of regions and AUROC of images, over three halves of the test images."""
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
    """Of the guess that defects are near the middle."""
    masks = torch.stack([mask_of(item, backbone().preprocess.placing("nearest"), (SIDE, SIDE)) for item in items])
    guess = _nearness().expand(len(masks), -1, -1)
    return {"pixel_auroc": auroc(guess.flatten(), masks.flatten()), "pro": region_overlap(guess, masks)}


def _nearness() -> Tensor:
    far = torch.arange(SIDE) - (SIDE - 1) / 2
    return -(far[:, None] ** 2 + far**2).sqrt()


def _row(case: str, found: Sequence[dict[str, Any]]) -> Row:
    names = {"pixel_auroc": "pixels", "pro": "regions", "image_auroc": "images"}
    cells = {said: [float(each[name]) for each in found] for name, said in names.items() if name in found[0]}
    text = ", ".join(f"{said} {mean(own):.3f} +- {pstdev(own):.3f}" for said, own in cells.items())
    return {"case": case, "text": text, "areas": cells}
