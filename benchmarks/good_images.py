"""Defects from good images alone: areas by the number of images, and the false alarms that thresholds promise.

And from images of which nobody knows which ones are good, each against all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import mean, pstdev
from typing import Any, NamedTuple

import torch
from scipy.stats import betabinom
from torch import Tensor
from torchvision.transforms.functional import to_tensor

import adapt
from adapt.backbones.base import ImageEncoder
from adapt.data.decoding.files import zip_root
from adapt.data.decoding.images import open_image
from adapt.data.emoji import bundled
from adapt.data.emoji.defects import planted, varied
from adapt.engine import vision
from adapt.evaluation.maps import auroc, region_overlap
from adapt.methods import AnoVL
from adapt.methods.patch_memory import PatchMemory, image_scores, rank
from benchmarks.measure import Row

PRODUCTS, BAD = 20, 20  # drawings, and pieces of each with a defect
TESTED = 20  # good pieces beside the bad ones in an area
IMAGES = (1, 4, 16)
SIDE = 64  # pixels of a map, at least, on which areas are measured
WORDS = 0.5  # the weight of what words say of patches, beside distances, both in their deviations over good pieces
STATES = {
    "normal": ("normal {}", "flawless {}", "perfect {}"),
    "defect": ("{} with a scratch", "{} with a stain", "damaged {}"),
}
ALARMS, APART = 10, 19  # draws from each product's pieces, and good images kept apart
UNMARKED = (2, 5)  # bad pieces among as many good ones as are tested
QUANTILES = (None, 0.001, 0.005)


class Case(NamedTuple):
    """A backbone, a block, the numbers of products and of good pieces of each, and of draws of these."""

    backbone: str
    block: int
    products: int = PRODUCTS
    good: int = 60
    draws: int = 5


OF_ALARMS = Case("mini-clip", -1, good=100)
CASES = (OF_ALARMS, Case("mini-clip", 3), Case("efficientnet-lite0", -2, 10, 36, 3))


class Product(NamedTuple):
    """Features of the patches of good and bad pieces, masks of the defects, and AnoVL's map of all pieces, if asked."""

    good: Tensor
    bad: Tensor
    masks: Tensor
    words: Tensor | None


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report areas for each backbone and block, means of draws, and false alarms on the bundled one."""
    for case in CASES:
        progress(f"{case.backbone}, block {case.block}")
        backbone: Any = adapt.load_backbone(case.backbone, "cpu")
        reads = case == OF_ALARMS
        products = [_product(backbone, case.block, number, case.good, reads) for number in range(case.products)]
        for images in IMAGES:
            draws = [_areas(products, images, draw, backbone.preprocess.size) for draw in range(case.draws)]
            yield _row(f"{case.backbone}, block {case.block}: {images} good", ("images", "pixels", "regions"), draws)
        if case == OF_ALARMS:
            for images in IMAGES:
                draws = [_areas(products, images, draw, backbone.preprocess.size, WORDS) for draw in range(case.draws)]
                yield _row(f"with words: {images} good", ("images", "pixels", "regions"), draws)
            yield from _alarms(products)
            yield from _unmarked(products, "each its own")
            alike = [_product(backbone, case.block, number, TESTED, False, "same") for number in range(PRODUCTS)]
            yield from _unmarked(alike, "the same")


def _product(
    backbone: ImageEncoder, block: int, number: int, good: int, reads: bool, defect: str | None = None
) -> Product:
    entry = Random(0).sample(bundled.of_groups("test"), PRODUCTS)[number]
    drawing, read = open_image(zip_root(bundled.ARCHIVE) + entry["file"]), backbone.transform(train=False)
    pieces = [varied(drawing, Random(f"{number}/{piece}")) for piece in range(good + BAD)]
    spoilt = [planted(piece, Random(defect or f"{number}/{place}")) for place, piece in enumerate(pieces[good:])]
    every = [*pieces[:good], *(picture for picture, _ in spoilt)]
    batches = [
        torch.stack([read(picture) for picture in every[start : start + 20]]) for start in range(0, len(every), 20)
    ]
    features = [vision.patch_features(backbone, batch, block) for batch in batches]
    place = backbone.preprocess.placing("nearest")
    masks = torch.stack([to_tensor(place(mask))[0] > 0.5 for _, mask in spoilt])
    patches = torch.cat(features)
    return Product(patches[:good], patches[good:], masks, _said(backbone, batches, patches) if reads else None)


@torch.no_grad()
def _said(backbone: Any, batches: Sequence[Tensor], patches: Tensor) -> Tensor:
    """Return what AnoVL's words say of each patch `(n, rows, columns)`."""
    model: Any = adapt.wrap(backbone, AnoVL(object="drawing", states=STATES), [*STATES]).eval()
    maps = torch.cat([model.method.anomalies(model.step(batch)) for batch in batches])
    _, rows, columns, _ = patches.shape
    return torch.nn.functional.adaptive_avg_pool2d(maps[:, None], (rows, columns))[:, 0]


def _memory(patches: Tensor) -> Tensor:
    return torch.nn.functional.normalize(patches, dim=-1).flatten(0, -2).half()


def _areas(products: Sequence[Product], images: int, draw: int, side: int, weight: float = 0.0) -> list[float]:
    """Return the areas of images, pixels and regions, averaged over the products; words have some `weight`."""
    method, of_each = PatchMemory(), list[list[float]]()
    for number, product in enumerate(products):
        places = Random(f"{number}/{draw}").sample(range(len(product.good)), images + TESTED)
        good = product.good[places]
        distances = method.distances(torch.cat([good[images:], product.bad]), _memory(good[:images]))
        if product.words is not None:
            words = torch.cat([product.words[places[images:]], product.words[len(product.good) :]])
            of_good = slice(TESTED)  # the scale of both, as favourable to words as can be
            distances = distances / distances[of_good].std() + weight * words / words[of_good].std()
        maps, masks = method.drawn(distances, (side, side)), torch.zeros(TESTED + BAD, side, side, dtype=torch.bool)
        masks[TESTED:] = product.masks
        maps, masks = (each[:, :: side // SIDE, :: side // SIDE].contiguous() for each in (maps, masks))
        found = auroc(image_scores(distances), masks.flatten(1).any(1)), auroc(maps.flatten(), masks.flatten())
        of_each.append([float(area or 0) for area in (*found, region_overlap(maps, masks))])
    return torch.tensor(of_each).mean(0).tolist()


def _alarms(products: Sequence[Product]) -> Iterator[Row]:
    """Report false alarms and found defects over many draws of good images, by both rules."""
    method = PatchMemory()
    for images in (2, 4, 8, 16):
        rates, inside = [], list[bool]()
        for number, product in enumerate(products):
            for draw in range(ALARMS):
                order = Random(f"{number}/{draw}/alarms").sample(range(len(product.good)), len(product.good))
                good = product.good[order]
                own, apart, new = good.split([images, APART, len(good) - images - APART])
                whole = _memory(own)
                left_out = [
                    image_scores(method.distances(own[[i]], _memory(own[[j for j in range(images) if j != i]])))
                    for i in range(images)
                ]
                known = image_scores(method.distances(apart, whole))
                good_new, bad = (image_scores(method.distances(each, whole)) for each in (new, product.bad))
                limits = [torch.cat(left_out).max(), known.sort(descending=True).values[rank(0.05, APART, False) - 1]]
                rates.append([float((each > limit).float().mean()) for limit in limits for each in (good_new, bad)])
                low, high = betabinom.interval(0.95, len(new), 1, APART)
                inside.append(bool(low <= int((good_new > limits[1]).sum()) <= high))
        names = ("left out: false", "found", f"{APART} apart: false", "found ")
        text = f"; bound {1 / (images + 1):.3f}; {mean(inside):.3f} of draws inside the band"
        row = _row(f"thresholds, {images} good, {len(rates)} draws", names, rates)
        yield {**row, "text": row["text"] + text}


def _unmarked(products: Sequence[Product], defects: str) -> Iterator[Row]:
    """Report the area of images that are compared with all others, a few of which have a defect too."""
    for bad in UNMARKED:
        areas = dict[str, list[list[float]]]()
        for number, product in enumerate(products):
            draws = Random(f"{number}/{bad}/unmarked")
            good = product.good[draws.sample(range(len(product.good)), TESTED)]
            pieces = torch.cat([good, product.bad[draws.sample(range(BAD), bad)]])
            for quantile in QUANTILES:
                method = PatchMemory(quantile=quantile)
                others = [_memory(torch.cat([pieces[:i], pieces[i + 1 :]])) for i in range(len(pieces))]
                scores = torch.cat([image_scores(method.distances(pieces[[i]], each)) for i, each in enumerate(others)])
                area = auroc(scores, torch.arange(len(pieces)) >= TESTED) or 0.0
                areas.setdefault(f"quantile {quantile}", []).append([area])
        for name, own in areas.items():
            yield _row(f"{bad} of {TESTED + bad} have a defect, {defects}: {name}, by product", ("images",), own)


def _row(case: str, names: Sequence[str], draws: Sequence[Sequence[float]]) -> Row:
    cells = dict(zip(names, zip(*draws, strict=True), strict=True))
    text = ", ".join(f"{name} {mean(own):.3f} +- {pstdev(own):.3f}" for name, own in cells.items())
    return {"case": case, "text": text, "areas": {name: [*own] for name, own in cells.items()}}
