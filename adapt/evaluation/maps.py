"""Scores of anomaly localisation (areas under curves, by image, by pixel and by region), and pictures of its maps."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.data.bags import has_bags
from adapt.data.decoding.masks import mask_of
from adapt.data.item import Item
from adapt.evaluation import intervals
from adapt.evaluation.inference import Inference
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import Scores, scored
from adapt.methods.base.traits import DrawsMaps, normal_label, trait
from adapt.models.base import Adapted
from adapt.models.image_model import ImageModel
from adapt.models.prediction import decided

logger = logging.getLogger("adapt")
TITLES = {
    "image_auroc": "AUROC of images",
    "image_f1_max": "highest F1 of a threshold chosen on these very images (F1-max of papers, not a decision's)",
    "map_auroc": "AUROC of images by the highest pixel of their maps",
    "false_alarms": "false alarms",
    "found": "abnormal images found",
    "pixel_auroc": "AUROC of pixels",
    "pro": "overlap of regions (PRO)",
}
CHANCE = 2.0  # standard deviations above an area of 0.5
MOST_FALSE = 0.3  # false positive rate of pixels up to which PRO is integrated, as published


@dataclass(frozen=True)
class MapScores(Scores):
    """Classification scores with areas under curves for anomalous images, pixels (AUROC) and regions (PRO).

    Beside the areas of images are the shares of normal and of anomalous ones that are called anomalous.
    """

    areas: tuple[tuple[str, float], ...] = ()
    anomalies: Tensor = field(default_factory=lambda: torch.zeros(4, 0), compare=False)
    """Whether each image is anomalous, whether it is called so, its score, and its highest pixel's, `(4, n)`."""
    caution: str = ""
    """What the maps cannot be trusted for, or ""."""

    @classmethod
    def of(
        cls, scores: Scores, anomalous: Tensor, abnormal: Tensor, maps: Tensor, masks: Tensor | None, normal: str
    ) -> MapScores:
        """Return `scores` with areas, from anomaly scores of images `(n,)` and pixels `(n, h, w)`.

        `anomalous` `(n,)` says which images are, and `masks` `(n, h, w)` says which of their pixels, if it is known.
        `normal` is the class of the others.
        """
        called = torch.tensor([name != normal for name in scores.predicted])
        anomalies = torch.stack([each.double() for each in (anomalous, called, abnormal, maps.flatten(1).amax(-1))])
        areas = _areas(anomalies)
        if masks is not None:
            areas |= {"pixel_auroc": auroc(maps.flatten(), masks.flatten()), "pro": region_overlap(maps, masks)}
        defined = tuple((name, area) for name, area in areas.items() if area is not None)
        return cls(**vars(scores), areas=defined, anomalies=anomalies, caution=_caution(areas["map_auroc"], anomalous))

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of accuracies and areas of images; areas of pixels have none."""
        known = [name for name, _ in self.areas if name not in ("pixel_auroc", "pro")]

        def figures(places: np.ndarray) -> dict[str, float]:
            areas = _areas(self.anomalies[:, torch.from_numpy(places)])
            return {name: math.nan if area is None else area for name, area in areas.items()}

        return super().intervals | intervals.of_figures(figures, dict.fromkeys(known, intervals.SHARE), self.kept_with)

    def figures(self) -> JsonObject:
        return super().figures() | dict(self.areas)

    def summary(self) -> dict[str, str]:
        areas = ", ".join(
            f"{TITLES[name]} {area:.3f}{intervals.between(self.intervals.get(name), '.3f')}"
            for name, area in self.areas
        )
        unmeasured = "" if "pixel_auroc" in dict(self.areas) else "pixels not measured, as no mask marks one"
        return super().summary() | {"maps": "; ".join(filter(None, (areas, unmeasured, self.caution)))}

    def lines(self, of: str) -> Iterator[str]:
        yield from super().lines(of)
        yield self.summary()["maps"]


def check_masked(model: Adapted, items: Sequence[Item]) -> None:
    """Raise AdaptError, naming the image, if only some of the abnormal images of `items` have a mask."""
    normal = model.class_names[normal_label(model.method, model.class_names)]
    bare = [item for item in items if item.answer != normal and not item.label.files]
    if bare and any(item.label.files for item in items):
        raise AdaptError(
            f"{bare[0].path!r} is of the class {bare[0].answer!r} and has no mask, but other images have one. Give a "
            f"mask to each image that is not of the class {normal!r}, or to none"
        )


def scored_with_maps(model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
    """Return the scores of `model` on `items`, with areas under curves if it draws anomaly maps.

    Pixels and regions are measured if the images that are not of the class of normal images have masks.
    """
    draws = trait(model.method, DrawsMaps)
    refused = ""
    if has_bags(items):
        refused = "an item has several images"
    elif draws is not None and draws.normal_class not in model.class_names:
        refused = f"no class is called {draws.normal_class!r}; set method.normal to the class of normal images"
    if draws is None or refused:
        if draws is not None:
            logger.warning("%s draws no maps here: %s", model.method.name, refused)
        return scored(items, inference.decisions(model, items))
    assert isinstance(model, ImageModel)  # as of every method that draws maps
    normal = normal_label(model.method, model.class_names)
    anomalous = torch.tensor([item.answer != model.class_names[normal] for item in items])
    masked = any(item.label.files for item in items)

    def answered(step: Any) -> tuple[Tensor, Tensor]:
        logits, maps = model.logits_and_maps(step.inputs)
        return logits, maps if masked else maps.flatten(1).amax(-1)[:, None, None]

    batches = list(inference.of_batches(model, items, answered))
    odds = torch.cat([logits for logits, _ in batches]).float().cpu()
    others = odds.clone().index_fill_(1, torch.tensor([normal]), -torch.inf)
    abnormal = others.logsumexp(-1) - odds[:, normal]  # probabilities would be rounded to 1 far from the threshold
    maps, place = torch.cat([maps for _, maps in batches]), model.backbone.preprocess.placing("nearest")
    size, turned = (maps.shape[1], maps.shape[2]), model.backbone.preprocess.turned
    masks = torch.stack([mask_of(item, place, size, turned) for item in items]) if masked else None
    scores = scored(items, [decided(logits, model.class_names) for logits, _ in batches])
    return MapScores.of(scores, anomalous, abnormal, maps, masks, model.class_names[normal])


def _caution(area: float | None, anomalous: Tensor) -> str:
    """Return a caution if maps separate images no better than chance does in one of forty draws, or else ""."""
    abnormal, normal = int(anomalous.sum()), int((~anomalous).sum())
    if area is None:
        return ""
    by_chance = math.sqrt((abnormal + normal + 1) / (12 * abnormal * normal))  # of the rank sum (Mann and Whitney)
    if area > 0.5 + CHANCE * by_chance:
        return ""
    return (
        f"do not trust the maps: as far as {abnormal} abnormal and {normal} normal images can tell, they are no warmer "
        "on abnormal images"
    )


def _areas(anomalies: Tensor) -> dict[str, float | None]:
    """Return the areas under ROC curves of two scores of images and two shares, from `MapScores.anomalies`."""
    anomalous, called = anomalies[:2] > 0
    areas = {name: auroc(own, anomalous) for name, own in zip(("image_auroc", "map_auroc"), anomalies[2:], strict=True)}
    areas["image_f1_max"] = f1_max(anomalies[2], anomalous)
    shares = {"false_alarms": called[~anomalous], "found": called[anomalous]}
    return areas | {name: float(own.double().mean()) if len(own) else None for name, own in shares.items()}


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Return the area under the ROC curve of scores `(n,)`, or None if all or no entries of `positive` are true."""
    from sklearn.metrics import roc_auc_score

    both = bool(positive.any()) and not bool(positive.all())
    return float(roc_auc_score(positive.numpy(), scores.float().numpy())) if both else None


def f1_max(scores: Tensor, positive: Tensor) -> float | None:
    """Return the largest F1 of any threshold on scores `(n,)`, or None if no entry of `positive` is true.

    The threshold is chosen by the images that are measured, so that this is not the quality of a decision.
    """
    from sklearn.metrics import precision_recall_curve

    if not positive.any():
        return None
    precision, recall, _ = precision_recall_curve(positive.numpy(), scores.numpy())
    return float((2 * precision * recall / (precision + recall).clip(1e-12)).max())


def region_overlap(maps: Tensor, masks: Tensor, most_false: float = MOST_FALSE) -> float | None:
    """Return the per-region overlap (PRO; Bergmann et al., CVPR 2020) of anomaly maps and masks `(n, h, w)`, in [0, 1].

    At each threshold, the overlap is the detected fraction of a region, averaged over all regions of the masks. The
    overlap is integrated over the false positive rate of pixels up to `most_false`, and divided by `most_false`. Every
    value of the maps is a threshold. Returns None if the masks have no region or no normal pixel.
    """
    from scipy.ndimage import label

    neighbours = np.zeros((3, 3, 3))
    neighbours[1] = 1  # of the same image, diagonal ones too
    regions = torch.from_numpy(label(masks.numpy(), neighbours)[0]).long()
    sizes = regions[masks].bincount()[1:]
    normal = int((~masks).sum())
    if not len(sizes) or not normal:
        return None
    order = maps.flatten().argsort(descending=True)
    values, region = maps.flatten()[order], regions.flatten()[order]
    share = torch.cat([torch.zeros(1).double(), 1 / (len(sizes) * sizes.double())])[region]
    last = torch.cat([values[1:] != values[:-1], torch.tensor([True])])  # of the pixels with the same value
    overlap = torch.cat([torch.zeros(1).double(), share.cumsum(0)[last]])
    false = torch.cat([torch.zeros(1).double(), (region == 0).cumsum(0)[last].double() / normal])
    inside, meets = false <= most_false, np.interp(most_false, false.numpy(), overlap.numpy())
    false, overlap = (
        torch.cat([x[inside], torch.tensor([end], dtype=torch.double)])
        for x, end in ((false, most_false), (overlap, meets))
    )
    return float(torch.trapezoid(overlap, false)) / most_false


LEVELS = 65535  # the largest value of a 16-bit picture
_WARM, _HOT = "#ff7a1a", "#d0002f"
_MOST = 0.8  # the opacity of the strongest colour


def as_picture(scores: Tensor, threshold: float | None) -> tuple[Image.Image, JsonObject]:
    """Return a map `(h, w)` as a 16-bit grey picture, and what is to be told of it.

    A score is `offset + scale * value`, to half of `scale`. Pixels above `threshold`, if there is one, are abnormal,
    and `highest` is the score of the most abnormal one.
    """
    low, high = (float(end) for end in scores.aminmax())
    scale = (high - low) / LEVELS
    values = ((scores.double() - low) / (scale or 1.0)).round()
    told: JsonObject = {"scale": scale, "offset": low, "threshold": threshold, "highest": high}
    return Image.fromarray(values.numpy().astype(np.uint16)), told


def pixel_threshold(model: Adapted) -> float | None:
    """Return the score above which a pixel is abnormal to a model that draws maps, or None."""
    draws = trait(model.method, DrawsMaps)
    threshold = None if draws is None else draws.threshold(pixels=True)
    return None if threshold is None else float(threshold)


def from_picture(picture: Image.Image, told: JsonObject) -> Tensor:
    """Return the map `(h, w)` that `as_picture` made a picture of."""
    return torch.from_numpy(np.asarray(picture).astype(np.float64) * told["scale"] + told["offset"]).float()


def ends_of_colour(middles: Sequence[float], highest: Sequence[float], threshold: float | None) -> tuple[float, float]:
    """Return the scores of the weakest and of the strongest colour for maps with these medians and maxima.

    Colours begin at the `threshold` of pixels or, without one, at the median of the medians.
    """
    low = statistics.median(middles) if threshold is None else threshold
    return low, max(low, *highest)


def heat(picture: Image.Image, scores: Tensor, ends: tuple[float, float]) -> Image.Image:
    """Return a picture with its map `(h, w)` as an overlay, from transparent to red between the two `ends`."""
    low, high = ends
    levels = ((scores - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    grey = Image.fromarray(levels.round().byte().numpy())
    colours = ImageOps.colorize(grey, _WARM, _HOT)
    return Image.composite(colours, picture, grey.point(lambda level: round(_MOST * level)))
