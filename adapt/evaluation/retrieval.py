"""Cross-modal retrieval and record linkage among pairs of images and texts: recall both ways, and nearest pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.data.decoding.images import in_batches
from adapt.data.item import Item
from adapt.evaluation import intervals
from adapt.evaluation.inference import Inference
from adapt.evaluation.intervals import Interval
from adapt.evaluation.scores import Scores, scored
from adapt.methods.base import Encoded, ImageStep
from adapt.models.base import evaluating
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.prediction import finite

AT = (1, 5, 10)
_TEXTS_AT_ONCE, _PAIRS_AT_ONCE = 512, 1024


@dataclass(frozen=True)
class RetrievalScores(Scores):
    """Retrieval scores, in which the prediction for an image is its nearest text, right if it belongs to the image.

    `recall` has two directions, `image_to_text` and `text_to_image`, each with values at 1, 5 and 10. A value is the
    share of images (or texts) with a matching text (or image) among the 1, 5 or 10 nearest candidates.
    """

    has_classes: ClassVar[bool] = False
    has_probabilities: ClassVar[bool] = False

    hits: dict[str, dict[str, Tensor]] = field(default_factory=dict, compare=False)
    """Whether each image (or text) has a match among the nearest candidates `(n,)`, by direction and their number."""
    hit_groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The groups of the images (or texts), by direction."""

    @property
    def recall(self) -> dict[str, dict[str, float]]:
        return {way: {at: float(hits.double().mean()) for at, hits in own.items()} for way, own in self.hits.items()}

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The intervals of the accuracy, and of recall, as in `image_to_text@5`."""
        return super().intervals | {
            f"{way}@{at}": intervals.of_share(hits, self.hit_groups[way])
            for way, own in self.hits.items()
            for at, hits in own.items()
        }

    def summary(self) -> dict[str, str]:
        return {
            way.replace("_", " "): ", ".join(
                f"{100 * share:.1f} % at {at}{self.between(f'{way}@{at}')}" for at, share in shares.items()
            )
            for way, shares in self.recall.items()
        }

    def lines(self, of: str) -> Iterator[str]:
        yield from (f"{way}: {shares}, {of}" for way, shares in RetrievalScores.summary(self).items())

    def figures(self) -> JsonObject:
        return super().figures() | {"recall": self.recall}


@dataclass(frozen=True)
class LinkedScores(RetrievalScores):
    """Record linkage scores besides recall: the entity of each image-text pair and of the nearest other pair.

    An entity, such as a product, is evaluated if it has several pairs. The image and text of a pair are combined into
    one feature (`PoolsPairs.pool`). `confidence` is the cosine similarity, or 0 if the cosine is negative; it is not a
    probability and cannot be calibrated.
    """

    def summary(self) -> dict[str, str]:
        share = f"{self.share('accuracy')} of {self.images:,} pairs are nearest to another of their entity"
        return {"linked": share} | super().summary()

    def lines(self, of: str) -> Iterator[str]:
        yield self.summary()["linked"]
        yield from super().lines(of)

    def figures(self) -> JsonObject:
        figures = super().figures() | {"linked": self.accuracy}
        del figures["calibration_error"]
        return figures


def retrieve(model: AdaptedModel, items: Sequence[Item], inference: Inference) -> RetrievalScores:
    """Return retrieval scores from an exact ranking of all texts for each image, and of all images for each text.

    If several pairs share an entity (such as a product), the nearest other pair of each pair is also searched, and
    record linkage scores are returned.
    """
    images = {item.path: item for item in items}
    texts = list(dict.fromkeys(item.text for item in items))
    place = {text: number for number, text in enumerate(texts)}
    row = {path: number for number, path in enumerate(images)}
    own_texts = grouped((item.unit or item.path, place[item.text]) for item in items)
    belongs = torch.zeros(len(images), len(texts), dtype=torch.bool)
    for item in items:
        belongs[row[item.path], own_texts[item.unit or item.path]] = True
    with torch.no_grad():
        with evaluating(model):
            of_texts = torch.cat([model.encode_texts(part) for part in in_batches(texts, _TEXTS_AT_ONCE)])
        of_images = torch.cat([*inference.of_batches(model, list(images.values()), lambda step: step.features)])
        logits = finite(ImageStep(model, Encoded(of_images)).cosine_logits(of_texts, of_images)).float().cpu()
        group = {item.text: item.kept_with for item in reversed(items)}
        recalled: dict[str, Any] = {
            "hits": {"image_to_text": hits(logits, belongs), "text_to_image": hits(logits.T, belongs.T)},
            "hit_groups": {
                "image_to_text": tuple(item.kept_with for item in images.values()),
                "text_to_image": tuple(group[text] for text in texts),
            },
        }
        units = [item.unit for item in items if item.unit]
        if len(set(units)) < len(units):
            images_of, texts_of = ([row[item.path] for item in items], [place[item.text] for item in items])
            return linked(items, model.pair_features(of_images[images_of].float(), of_texts[texts_of]).cpu(), recalled)
    best = logits.softmax(-1).max(-1)
    predicted = [texts[number] for number in best.indices.tolist()]
    own = [[texts[number] for number in row.nonzero()[:, 0].tolist()] for row in belongs]
    actual = [text if text in theirs else theirs[0] for text, theirs in zip(predicted, own, strict=True)]
    scores = scored(list(images.values()), [(predicted, best.values.tolist())], actual)
    return RetrievalScores(**vars(scores), **recalled)


def linked(items: Sequence[Item], features: Tensor, recalled: dict[str, Any]) -> LinkedScores:
    """Return record linkage scores of pairs with a shared entity, from unit-length features `(n, e)` of all `items`.

    `recalled` are the fields of retrieval scores.
    """
    sizes = Counter(item.unit for item in items if item.unit)
    queries = [number for number, item in enumerate(items) if sizes[item.unit] > 1]
    cosines, nearest = list[float](), list[int]()
    for rows in torch.tensor(queries).split(_PAIRS_AT_ONCE):
        others = features[rows] @ features.T
        others[torch.arange(len(rows)), rows] = -torch.inf
        best = others.max(-1)
        cosines += best.values.clamp_min(0).tolist()
        nearest += best.indices.tolist()
    entity = [item.unit or item.name for item in items]
    actual, predicted = ([entity[number] for number in numbers] for numbers in (queries, nearest))
    scores = scored([items[number] for number in queries], [(predicted, cosines)], actual)
    return LinkedScores(**vars(scores), **recalled)


def hits(logits: Tensor, belongs: Tensor) -> dict[str, Tensor]:
    """Return whether rows of `logits` `(n, m)` have a match in `belongs` `(n, m)` among the top 1, 5 and 10, `(n,)`."""
    ranked = belongs.gather(1, logits.topk(min(max(AT), logits.shape[1]), dim=-1).indices)
    return {str(count): ranked[:, :count].any(-1) for count in AT}
