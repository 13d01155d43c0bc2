"""Scores of anomaly localisation: areas under curves, by image, by pixel and by region."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.common.plain import JsonObject
from adapt.data.decoding.masks import mask_of
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores, scored
from adapt.methods.base.traits import normal_label
from adapt.models.classifier import AdaptedModel
from adapt.models.prediction import decided

TITLES = {"image_auroc": "AUROC of images", "pixel_auroc": "of pixels", "pro": "overlap of regions (PRO)"}
MOST_FALSE = 0.3  # false positive rate of pixels up to which PRO is integrated, as published


@dataclass(frozen=True)
class MapScores(Scores):
    """Classification scores with areas under curves for anomalous images, pixels (AUROC) and regions (PRO)."""

    areas: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, scores: Scores, abnormal: Tensor, maps: Tensor, masks: Tensor) -> MapScores:
        """Return `scores` with areas, from anomaly scores of images `(n,)` and pixels `(n, h, w)`, and true masks."""
        anomalous = masks.flatten(1).any(-1)
        areas = {
            "image_auroc": auroc(abnormal, anomalous),
            "pixel_auroc": auroc(maps.flatten(), masks.flatten()),
            "pro": region_overlap(maps, masks),
        }
        defined = tuple((name, area) for name, area in areas.items() if area is not None)
        return cls(**vars(scores), areas=defined)

    def figures(self) -> JsonObject:
        return super().figures() | dict(self.areas)

    def summary(self) -> dict[str, str]:
        areas = ", ".join(f"{TITLES[name]} {area:.3f}" for name, area in self.areas)
        return super().summary() | {"maps": areas or "not measured, as no mask marks a pixel"}

    def lines(self, of: str) -> Iterator[str]:
        yield from super().lines(of)
        yield self.summary()["maps"]


def map_scores(model: AdaptedModel, items: Sequence[Item], inference: Inference) -> MapScores:
    """Return the scores of `model` on items with masks, including areas under curves for its anomaly maps."""
    normal = normal_label(model.method, model.class_names)
    batches = list(inference.of_batches(model, items, lambda step: model.logits_and_maps(step.inputs)))
    abnormal = 1 - torch.cat([logits for logits, _ in batches]).float().softmax(-1)[:, normal].cpu()
    maps, place = torch.cat([maps for _, maps in batches]), model.backbone.preprocess.placing("nearest")
    size, turned = (maps.shape[1], maps.shape[2]), model.backbone.preprocess.turned
    masks = torch.stack([mask_of(item, place, size, turned) for item in items])
    scores = scored(items, [decided(logits, model.class_names) for logits, _ in batches])
    return MapScores.of(scores, abnormal, maps, masks)


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Return the area under the ROC curve of scores `(n,)`, or None if all or no entries of `positive` are true."""
    from sklearn.metrics import roc_auc_score

    both = bool(positive.any()) and not bool(positive.all())
    return float(roc_auc_score(positive.numpy(), scores.float().numpy())) if both else None


def region_overlap(maps: Tensor, masks: Tensor, most_false: float = MOST_FALSE) -> float | None:
    """Return the per-region overlap (PRO; Bergmann et al., CVPR 2020) of anomaly maps and masks `(n, h, w)`, in [0, 1].

    At each threshold, the overlap is the detected fraction of a region, averaged over all regions of the masks. The
    overlap is integrated over the false positive rate of pixels up to `most_false`, and divided by `most_false`. Every
    value of the maps is a threshold. Returns None if the masks have no region or no normal pixel.
    """
    regions = _regions(masks)
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
    inside = false <= most_false
    false, overlap = _cut(false, overlap, int(inside.sum()), most_false)
    return float(torch.trapezoid(overlap, false)) / most_false


def _cut(x: Tensor, y: Tensor, inside: int, limit: float) -> tuple[Tensor, Tensor]:
    """Return the first `inside` points of a curve, followed by the point interpolated at `x = limit`."""
    if inside == len(x):
        return x, y
    share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
    meets = y[inside - 1] + share * (y[inside] - y[inside - 1])
    return torch.cat([x[:inside], torch.tensor([limit], dtype=torch.double)]), torch.cat([y[:inside], meets[None]])


def _regions(masks: Tensor) -> Tensor:
    """Return masks `(n, h, w)` in which connected regions (including diagonal neighbours) are numbered from 1."""
    from scipy.ndimage import label

    regions, count = [], 0
    for mask in masks:
        numbered, regions_here = label(mask.numpy(), structure=torch.ones(3, 3).numpy())
        own = torch.from_numpy(numbered).long()
        regions.append(torch.where(mask, own + count, 0))
        count += regions_here
    return torch.stack(regions)
