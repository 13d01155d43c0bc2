"""Proposed labels: the likeliest classes of images, and the order in which labels are most useful.

Images are worth a label that many other, uncertain images resemble. Our reading: facility location (Wei et al.,
Submodularity in Data Subset Selection and Active Learning, ICML 2015), with the similarity exp(s c) of two images whose
features have the cosine c, and a weight for each image that is to be represented. Uncertainty alone, which is what most
tools order by, is no better than chance with a few labels a class (`python -m benchmarks labelling`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapt.common.progress import counting_bar
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.labelling.proposals import Doubt, Proposal
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted

LIKELY = 9  # classes that a proposal lists, one for each digit key
SHARPNESS = 2.0  # of the similarity, over the standard deviation of the cosines
CERTAIN = 0.75  # how much an image counts whose class is certain; one that is undecided counts as 1
MOST = 4096  # images that are compared with each other; of more, so many are drawn


def in_order(
    model: ImageModel, unlabelled: Sequence[Item], labelled: Sequence[Item], count: int, seed: int, progress: bool
) -> list[Proposal]:
    """Return proposals for up to `count` of the `unlabelled` images, the most useful ones first.

    Of more than `MOST` images, so many are drawn by `seed`, so that a round does not encode a large folder again.
    """
    if not unlabelled:
        return []
    if len(unlabelled) > MOST:
        unlabelled = random.Random(seed).sample(unlabelled, MOST)
    probabilities = _probabilities(model, unlabelled, progress)
    features, known = (_features(model, items) for items in (unlabelled, labelled))
    places = most_useful(features, known, probabilities, count)
    return _proposals(model, [unlabelled[place] for place in places], probabilities[places], {})


def as_listed(model: ImageModel, items: Sequence[Item], doubts: Mapping[str, Doubt], progress: bool) -> list[Proposal]:
    """Return proposals for doubtful `items`, in their order; `doubts` says by path why they are doubtful."""
    return _proposals(model, items, _probabilities(model, items, progress), doubts) if items else []


def _proposals(
    model: ImageModel, items: Sequence[Item], probabilities: Tensor, doubts: Mapping[str, Doubt]
) -> list[Proposal]:
    best, places = probabilities.topk(min(LIKELY, len(model.class_names)), -1)
    proposals = []
    for item, values, own in zip(items, best.tolist(), places.tolist(), strict=True):
        likely = tuple((model.class_names[place], value) for place, value in zip(own, values, strict=True))
        doubt = doubts.get(item.path, Doubt(""))
        proposals.append(Proposal(item, item.answer or likely[0][0], likely, doubt.why, doubt.other))
    return proposals


def _probabilities(model: ImageModel, items: Sequence[Item], progress: bool) -> Tensor:
    """Return the probabilities `(n, c)` of the classes for each item."""
    with counting_bar("encoding", progress) as bar:
        return Inference(progress=bar).all_logits(model, items).float().softmax(-1)


def _features(model: ImageModel, items: Sequence[Item]) -> Tensor:
    """Return the unadapted backbone's unit-length features `(n, e)`, which are cached and never change."""
    if not items:
        return torch.zeros(0, model.backbone.embed_dim)
    encoder = unadapted(model.backbone, model.class_names)
    assert isinstance(encoder, ImageModel)
    return item_features(encoder, items, workers=2)


def most_useful(features: Tensor, labelled: Tensor, probabilities: Tensor, count: int) -> list[int]:
    """Return the places of up to `count` images, the most useful to label first.

    `features` `(n, e)` and `labelled` `(m, e)` are the unit-length features of unlabelled and labelled images, and
    `probabilities` `(n, c)` are the classes' for each unlabelled image. Each image in turn is the one that represents
    the others best, beside the labelled images and those before it.
    """
    weights = uncertainty(probabilities)
    cosines = features @ features.T
    sharpness = SHARPNESS / cosines.std().clamp_min(1e-6) if len(features) > 1 else torch.tensor(SHARPNESS)
    similar = (sharpness * (cosines - 1)).exp()
    represented = torch.zeros(len(features))
    if len(labelled):
        represented = (sharpness * ((features @ labelled.T).max(-1).values - 1)).exp()
    chosen: list[int] = []
    for _ in range(min(count, len(features))):
        gains = (similar - represented).clamp_min(0) @ weights
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        represented = torch.maximum(represented, similar[chosen[-1]])
    return chosen


def uncertainty(probabilities: Tensor) -> Tensor:
    """Return the weight `(n,)` of each image, from `CERTAIN` to 1 if the two likeliest classes are equally likely."""
    if probabilities.shape[-1] < 2:
        return torch.ones(len(probabilities))
    first, second = probabilities.topk(2, -1).values.T
    return 1 - (1 - CERTAIN) * (first - second)
