"""Proposed labels: the likeliest classes of images, and the order in which labels are most useful."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapt.common.progress import counting_bar
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.labelling.order import most_useful
from adapt.labelling.proposals import Doubt, Proposal
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted

LIKELY = 9  # classes that a proposal lists, one for each digit key
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
