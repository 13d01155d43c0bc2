"""Several adapters as one: soups, of which the weights are mixed, and averages, of which the probabilities are.

Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time, ICML 2022. `Method.mixed` decides what is mixed, and how. An average (`adapt.models.average`) needs no
common start, and takes the time of its members.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from adapt.backbones.base import Backbone
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.item import Item
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.scores import main_figure
from adapt.formats.adapter import Header, header_of
from adapt.formats.rebuild import build_for
from adapt.loading import load_many
from adapt.methods.base.mixture import Combination, Mixture, default_weights, mixed
from adapt.methods.base.traits import Grades, PoolsBags, Stream, has_trait
from adapt.models.average import AverageOfAdapters
from adapt.models.base import Adapted
from adapt.models.image_model import ImageModel
from adapt.models.prediction import Answers
from adapt.models.wrap import Model

logger = logging.getLogger("adapt")

Tried = Callable[[str, float, bool], None]  # an adapter, the accuracy (or mAP) with it, whether it was kept


class _Member(NamedTuple):
    """A model that is combined in a soup, and its name in error messages."""

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
    """Return one adapted model that combines several models, which may differ only in their learned tensors.

    `adapters` are paths, names on the hub, or models. `weights` has one weight per adapter, by default equal weights
    that sum to 1, or weights of 1 for the two `ties` combinations, which compute an average themselves. For LoRA, the
    weight updates are combined, not the factors. `linear` is exact, and its rank is the sum of the adapters' ranks.
    `magnitude_prune`, `ties`, `dare_linear` and `dare_ties` are from peft, and keep the fraction `density` of the
    entries of an update. Results of the peft combinations, and all results if `rank` is given, are approximated by the
    nearest update of that rank, by default the adapters' rank. Methods other than LoRA support only `linear`, with
    weights that sum to 1.

    If there are `validation` images, the soup is greedy. Starting from the best adapter, each adapter, in order of
    accuracy, is added to the mean unless the mean gets worse on these images. `tried` is called with the name of each
    adapter, the accuracy (or mAP) of the mean with this adapter, and whether the adapter was kept.

    If images may have several classes, the logit bias of the soup is the weighted mean of the adapters' biases.

    Raises AdaptError, which names two adapters, if the adapters differ in method, settings, backbone, classes or
    answers. Raises AdaptError if the method does not support the combination.
    """
    members = _loaded("soup", 1, adapters, backbone)
    first, described = members[0], header_of(members[0].model)
    for member in members[1:]:
        _check_alike(described, first.name, header_of(member.model), member.name)
    if validation is not None:
        if weights is not None or combination != "linear" or density is not None:
            raise AdaptError(
                "a greedy soup is the unweighted mean of the adapters: leave out weights, combination and density"
            )
        return _greedy(members, validation, rank, tried or (lambda name, accuracy, taken: None))
    if weights is not None and len(weights) != len(members):
        raise AdaptError(f"there are {len(weights)} weights for {len(members)} adapters; expected one per adapter")
    if weights is not None and not any(weights):
        raise AdaptError("all weights are 0, which would leave nothing of the training: give other weights")
    shares = default_weights(len(members), combination) if weights is None else tuple(map(float, weights))
    return _mixed(members, Mixture(shares, combination, density, rank, seed))


def average(
    adapters: Sequence[str | Path | Model],
    backbone: Backbone | None = None,
    class_names: Sequence[str] | None = None,
    *,
    device: str | torch.device = AUTO,
) -> Model:
    """Return one adapted model whose probabilities are the means of those of several models, of any methods.

    `adapters` are paths, names on the hub (both as in `load_many`, as are `class_names`), or models. Each keeps its
    temperature, blend and logit bias, and the order of the classes is that of the first. `Prediction.disagreement` is
    added to answers.

    Raises AdaptError, which names two adapters, if they differ in backbone, preprocessing, names of classes, labels an
    image, or pooling; and for one that does not classify images, predicts a number, weighs the images of an item, or
    whose answers depend on random views or on earlier images.
    """
    if class_names is not None and any(isinstance(each, Adapted) for each in adapters):
        raise AdaptError("class_names are for adapters that are loaded: call model.with_classes for a model in memory")
    members = _loaded("average", 2, adapters, backbone, class_names, device=device)
    first, described, tensors = members[0].model, list[dict[str, object]](), dict[str, torch.Tensor]()
    shared = _to_average(*members[0])
    for index, (name, model) in enumerate(members):
        for what, own in _to_average(name, model).items():
            if own != shared.get(what):
                both = f"{members[0].name} and {name} differ in {what}, {brief(shared.get(what))} and {brief(own)}"
                raise AdaptError(f"{both}: give adapters with equal {what}")
        order = [] if model.class_names == first.class_names else map(model.class_names.index, first.class_names)
        settings = {"method": model.method.name, "config": model.method.config.model_dump(mode="json")}
        described.append({**settings, "answers": replace(model.answers, sets=None), "order": tuple(order)})
        tensors |= {f"members.{index}.{key}": tensor for key, tensor in model.method.state_dict().items()}
    made = build_for(AverageOfAdapters(members=described), first.backbone, first.class_names, tensors, "the average")
    made.answers = Answers(logit_bias=_mean_bias(members), pooling=first.answers.pooling)
    made.metadata = {"recipe": {"average": {"adapters": [name for name, _ in members]}}}
    return made.eval()


def _to_average(name: str, model: Model) -> dict[str, object]:
    """Return what adapters must share to be averaged. Raises AdaptError, with the `name`, for one that cannot be."""
    method = model.method
    for reason, holds in {
        "does not classify images by names of classes": not (isinstance(model, ImageModel) and model.class_names),
        "predicts a number": has_trait(method, Grades),
        "weighs the images of an item": has_trait(method, PoolsBags),
        "depends on random views, or on earlier images": bool(method.views) or has_trait(method, Stream),
    }.items():
        if holds:
            raise AdaptError(f"{name} cannot be averaged with other adapters: this {method.name} {reason}")
    backbone, answers = model.backbone, model.answers
    return {
        "backbone": f"{backbone.describe()} ({backbone.fingerprint.short()})",
        **{f"preprocessing ({key})": value for key, value in backbone.reading().items()},
        "classes": sorted(model.class_names),
        "kind of labels": "several an image" if answers.several else "one an image",
        "pooling": answers.pooling,
    }


def _loaded(what: str, least: int, adapters: Sequence[str | Path | Model], *others: Any, **how: Any) -> list[_Member]:
    """Return `least` or more models, as `load_many` loads them. Raises AdaptError for fewer, and for an average."""
    if isinstance(adapters, str | Path) or len(adapters) < least:
        raise AdaptError(f"{what} got {brief(adapters)}; expected a list with {least} or more adapters")
    loaded = iter(load_many([each for each in adapters if not isinstance(each, Adapted)], *others, **how))
    members = [
        _Member(f"model {number}", each) if isinstance(each, Adapted) else _Member(str(each), next(loaded))
        for number, each in enumerate(adapters, 1)
    ]
    for name, model in members:
        if isinstance(model.method, AverageOfAdapters):
            raise AdaptError(f"{name} is an average of several adapters already: give its members")
        if model.watch is not None or model.answers.sets is not None:
            logger.warning("the watch and the calibrated sets of %s stay out of the %s, another model", name, what)
    return members


def _check_alike(one: Header, one_name: str, other: Header, other_name: str) -> None:
    """Raise AdaptError if two adapters differ in more than their learned tensors, such as in settings or classes."""
    for what in ("method", "config", "fingerprint", "preprocess", "class_names", "answers"):
        a, b = getattr(one, what), getattr(other, what)
        if what == "answers" and a and b:  # the soup takes the mean of what each adapter has fitted
            a, b = ({key: each[key] for key in each if key != "temperature"} for each in (a, b))
            if None not in (a.get("logit_bias"), b.get("logit_bias")):
                b = b | {"logit_bias": a["logit_bias"]}
        if a == b:
            continue
        if what == "config":
            what = next(key for key in sorted({*a, *b}) if a.get(key) != b.get(key))
            a, b = a.get(what), b.get(what)
        if what == "fingerprint":
            what, a, b = "backbone", one.backbone, other.backbone
        raise AdaptError(
            f"{one_name} and {other_name} differ in {what}, {brief(a)} and {brief(b)}, but a soup may combine only "
            f"adapters that differ in nothing but their learned tensors: choose adapters with equal {what}"
        )


def _mixed(members: Sequence[_Member], mixture: Mixture) -> Model:
    first = members[0].model
    with torch.no_grad():
        settings, tensors = mixed([member.model.method for member in members], mixture)
    model = build_for(type(first.method)(**settings), first.backbone, first.class_names, tensors, "the soup")
    # means with absolute weights: of the logit biases, if there are any, and of the temperatures' logarithms
    sizes = [abs(weight) for weight in mixture.weights]
    weights, answers = sizes if any(sizes) else None, [member.model.answers for member in members]
    temperature = exp(fmean([log(each.temperature) for each in answers], weights))
    model.answers = replace(answers[0], logit_bias=_mean_bias(members, weights), temperature=temperature, sets=None)
    ingredients = [
        {"adapter": name, "weight": weight} for (name, _), weight in zip(members, mixture.weights, strict=True)
    ]
    how = {"combination": mixture.combination, "density": mixture.density, "rank": mixture.rank, "seed": mixture.seed}
    model.metadata = {"recipe": {"soup": {**how, "ingredients": ingredients}}}
    return model.eval()


def _mean_bias(members: Sequence[_Member], weights: Sequence[float] | None = None) -> float | None:
    """Return the mean of the members' logit biases, which all of them have, or none."""
    biases = [bias for _, model in members if (bias := model.answers.logit_bias) is not None]
    return fmean(biases, weights) if biases else None


def _mean(members: Sequence[_Member], rank: int | None) -> Model:
    return _mixed(members, Mixture(default_weights(len(members), "linear"), rank=rank))


def _greedy(members: Sequence[_Member], validation: Sequence[Item], rank: int | None, tried: Tried) -> Model:
    """Return the greedy soup of Wortsman et al., to which a model is added if the validation score does not drop."""
    figures = [evaluate(member.model, validation).figures() for member in members]
    figure, _ = main_figure(figures[0])
    scores = [each[figure] for each in figures]
    order = sorted(range(len(members)), key=lambda index: -scores[index])  # stable
    used, best = [members[order[0]]], scores[order[0]]
    tried(used[0].name, best, True)
    for index in order[1:]:
        member = members[index]
        score = evaluate(_mean([*used, member], rank), validation).figures()[figure]
        if score >= best:
            used, best = [*used, member], score
        tried(member.name, score, used[-1] is member)
    mean = _mean(used, rank)
    mean.metadata["metrics"] = {"val": {figure: best, "images": len(validation)}}
    return mean
