"""Soups: several adapters of a common start as one, which costs at prediction what one costs.

Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time, ICML 2022. What is mixed, and how, is the method's own: see `Method.mixed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from adapt.backbones.base import Backbone
from adapt.data.item import Item
from adapt.errors import AdaptError
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.scores import main_figure
from adapt.formats.adapter import header_of
from adapt.formats.header import Header
from adapt.formats.rebuild import build_for
from adapt.loading import load_many
from adapt.methods.base.mixture import Combination, Mixture, default_weights, mixed
from adapt.models.base import Adapted
from adapt.models.wrap import Model
from adapt.shown import brief

Tried = Callable[[str, float, bool], None]  # an adapter, the accuracy (or mAP) with it, whether it was taken


class _Member(NamedTuple):
    """What goes into the pot."""

    name: str
    model: Model


def soup(
    adapters: Sequence[str | Path | Model],
    weights: Sequence[float] | None = None,
    *,
    combination: Combination = "linear",
    density: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    validation: Sequence[Item] | None = None,
    backbone: Backbone | None = None,
    tried: Tried | None = None,
) -> Model:
    """One adapted model in place of several, which differ in nothing but what they learned.

    `adapters` are paths, names on the hub, or models. `weights` are one each: by default a mean, and 1 each for the two
    ties, which take a mean themselves. Of LoRA the changes of weights are mixed, never the factors by themselves:
    `linear` is exact, and its rank the sum of theirs; `magnitude_prune`, `ties`, `dare_linear` and `dare_ties` are
    peft's, with a `density`, the share of entries that is kept. Their results, and any of a given `rank`, are the
    nearest of that rank, by default the adapters' own. Of other methods there is `linear` only, with weights that sum
    to 1.

    With `validation` images the soup is greedy: from the best adapter on, in their order, each is taken that does not
    make the mean worse on them. `tried` is then called for each.

    Of images of several classes the bias of the logits is the mean of theirs, by the sizes of the weights.

    Raises AdaptError where the adapters differ in method, settings, backbone, classes or answers, by name, and where
    their method has no such mixture.
    """
    members = _loaded(adapters, backbone)
    if validation is not None:
        if weights is not None or combination != "linear" or density is not None:
            raise AdaptError("a greedy soup is the mean of those that it takes: leave weights and combination out")
        return _greedy(members, validation, rank, tried or (lambda name, accuracy, taken: None))
    if weights is not None and len(weights) != len(members):
        raise AdaptError(f"there are {len(weights)} weights for {len(members)} adapters; expected one each")
    shares = default_weights(len(members), combination) if weights is None else tuple(map(float, weights))
    return _mixed(members, Mixture(shares, combination, density, rank, seed))


def _loaded(adapters: Sequence[str | Path | Model], backbone: Backbone | None) -> list[_Member]:
    """The models, those of files on one backbone where they name one. AdaptError where they do not go together."""
    if isinstance(adapters, str | Path) or not adapters:
        raise AdaptError(f"soup got {brief(adapters)}; expected a list of adapters, at least one")
    loaded = iter(load_many([each for each in adapters if not isinstance(each, Adapted)], backbone))
    members = [
        _Member(f"model {number}", each) if isinstance(each, Adapted) else _Member(str(each), next(loaded))
        for number, each in enumerate(adapters, 1)
    ]
    first = members[0]
    described = header_of(first.model)
    for member in members[1:]:
        _check_alike(described, first.name, header_of(member.model), member.name)
    return members


def _check_alike(one: Header, one_name: str, other: Header, other_name: str) -> None:
    """AdaptError, by name, for what a soup cannot have two of."""
    for what in ("method", "config", "fingerprint", "preprocess", "class_names", "answers"):
        a, b = getattr(one, what), getattr(other, what)
        if what == "answers" and a and b and {"logit_bias"} <= a.keys() & b.keys():  # of which there is a mean
            b = b | {"logit_bias": a["logit_bias"]}
        if a == b:
            continue
        if what == "config":
            what = next(key for key in sorted({*a, *b}) if a.get(key) != b.get(key))
            a, b = a.get(what), b.get(what)
        if what == "fingerprint":
            what, a, b = "backbone", one.backbone, other.backbone
        raise AdaptError(
            f"{one_name} and {other_name} differ in {what}, {brief(a)} and {brief(b)}: a soup is of adapters that "
            "differ in nothing but what they learned"
        )


def _mixed(members: Sequence[_Member], mixture: Mixture) -> Model:
    first = members[0].model
    with torch.no_grad():
        settings, tensors = mixed([member.model.method for member in members], mixture)
    model = build_for(type(first.method)(**settings), first.backbone, first.class_names, tensors, "the soup")
    model.answers = replace(first.answers, logit_bias=_mean_bias([member.model for member in members], mixture))
    ingredients = [
        {"adapter": name, "weight": weight} for (name, _), weight in zip(members, mixture.weights, strict=True)
    ]
    how = {"combination": mixture.combination, "density": mixture.density, "rank": mixture.rank, "seed": mixture.seed}
    model.metadata = {"recipe": {"soup": {**how, "ingredients": ingredients}}}
    return model.eval()


def _mean_bias(models: Sequence[Model], mixture: Mixture) -> float | None:
    """That of images of several classes: whatever the weights sum to, it stays between the models' own."""
    biases = [bias for model in models if (bias := model.answers.logit_bias) is not None]
    sizes = [abs(weight) for weight in mixture.weights]
    return fmean(biases, sizes if any(sizes) else None) if biases else None  # all of them have one, or none has


def _mean(members: Sequence[_Member], rank: int | None) -> Model:
    return _mixed(members, Mixture(default_weights(len(members), "linear"), rank=rank))


def _greedy(members: Sequence[_Member], validation: Sequence[Item], rank: int | None, tried: Tried) -> Model:
    """Wortsman et al.'s second recipe."""
    figures = [evaluate(member.model, validation).figures() for member in members]
    figure, _ = main_figure(figures[0])
    alone = [each[figure] for each in figures]
    order = sorted(range(len(members)), key=lambda index: -alone[index])  # the first of equals comes first
    taken, best = [members[order[0]]], alone[order[0]]
    tried(taken[0].name, best, True)
    for index in order[1:]:
        member = members[index]
        found = evaluate(_mean([*taken, member], rank), validation).figures()[figure]
        if found >= best:
            taken, best = [*taken, member], found
        tried(member.name, found, taken[-1] is member)
    mean = _mean(taken, rank)
    mean.metadata["metrics"] = {"val": {figure: best, "images": len(validation)}}
    return mean
