"""Images of no class at all: how well each way tells them from images of the known classes, and how it names these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.data import Item, Split
from adapt.evaluation.inference import Inference
from adapt.recipe import read_recipe
from adapt.training.run_recipe import learn
from benchmarks.drawings import SEEN, UNSEEN, built, drawings
from benchmarks.first_hour import FOLDER
from benchmarks.ordinary_folders import write
from benchmarks.text import Row

SEEDS = (1, 2, 3)
SHOTS = 16
NONE = "none"
KNOWN = {"emoji": 12, "digits": 6, "textures": 6}  # how many classes of each data set are known


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: known ones, others that stand in training for all else, and those of the test."""

    known: tuple[str, ...]
    others: tuple[str, ...]
    never_seen: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """A recipe, how sure its logits `(n, classes)` are that an image is of a known class, and what it learns from."""

    recipe: str
    settings: Mapping[str, Any]
    with_none: bool
    score: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Told:
    """How one model tells the images of a test apart."""

    auroc: float
    refused: float
    accuracy: float
    called_none: tuple[float, float]  # shares of the known and of the never-seen images whose likeliest class is none


def largest_probability(found: Tensor) -> Tensor:
    """The probability of the likeliest class, as its logarithm `(n,)`: near 1 doubles would be equal."""
    return found.log_softmax(-1).max(-1).values


def of_some_class(found: Tensor) -> Tensor:
    """As large as the probability of `none`, the last class, is small `(n,)`."""
    return -found.log_softmax(-1)[:, -1]


def of_known_ones(found: Tensor) -> Tensor:
    """The probability of the likeliest class where `none`, the last one, is left out, as its logarithm `(n,)`."""
    return largest_probability(found[:, :-1])


def largest_cosine(found: Tensor) -> Tensor:
    """The cosine with the nearest class mean, times the backbone's scale `(n,)`."""
    return found.max(-1).values


_LDA = {"method.words": None, "calibrate": True}
WAYS = {
    "zero-shot, its largest probability": Way("zero_shot", {}, False, largest_probability),
    "lda, a class none": Way("lda", _LDA, True, of_some_class),
    "detpro, background": Way("detpro", {"method.background": NONE}, True, of_known_ones),
    "lda, its largest probability": Way("lda", _LDA, False, largest_probability),
    "nearest_mean, its largest cosine": Way("nearest_mean", {}, False, largest_cosine),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """AUROC, never-seen images refused where nine tenths of the known ones are answered, and accuracy on these."""
    for name, way in WAYS.items():
        found: dict[str, list[Told]] = {}
        for source in KNOWN:
            progress(f"{name}: {source}")
            found |= _on(source, way)
        yield _row(name, {test: _figures(told) for test, told in found.items()})
        if way.with_none:
            yield _row("  called none", {test: _called_none(told) for test, told in found.items()})


def divided(class_names: Sequence[str], known: int) -> list[Classes]:
    """Three divisions of the classes, a third of them further each time; every second unknown one is for training."""
    third, found = len(class_names) // 3, []
    for start in (0, third, 2 * third):
        names = (*class_names[start:], *class_names[:start])
        found.append(Classes(names[:known], names[known::2], names[known + 1 :: 2]))
    return found


def told_apart(known: Tensor, never_seen: Tensor) -> tuple[float, float]:
    """AUROC of scores, and the share of `never_seen` below a threshold that nine tenths of `known` reach."""
    from sklearn.metrics import roc_auc_score

    is_known = torch.arange(len(known) + len(never_seen)) < len(known)
    threshold = known.sort().values[len(known) // 10]
    auroc = roc_auc_score(is_known.numpy(), torch.cat([known, never_seen]).numpy())
    return float(auroc), float((never_seen < threshold).double().mean())


def _on(source: str, way: Way) -> dict[str, list[Told]]:
    """How models of all divisions and seeds do, by the name of the test."""
    if source == "emoji":
        split, tests = drawings(SEEN), {"emoji": drawings(SEEN).test, "of an unseen style": drawings(UNSEEN).test}
        place = SEEN
    else:
        place = str(write(source, FOLDER))
        split = adapt.data.load(place)
        tests = {source: split.test}
    found: dict[str, list[Told]] = {test: [] for test in tests}
    for classes, seed in product(divided(split.class_names, KNOWN[source]), SEEDS):
        model = _trained(way, place, split.few_shot(SHOTS, seed).train, classes, seed)
        for test, items in tests.items():
            found[test].append(_told(way, model, classes, items))
    return found


def _trained(way: Way, source: str, items: Sequence[Item], classes: Classes, seed: int) -> AdaptedModel:
    """What is chosen is chosen on the training images: no others are there."""
    names = (*classes.known, NONE) if way.with_none else classes.known
    called = {name: name for name in classes.known} | dict.fromkeys(classes.others if way.with_none else (), NONE)
    train = tuple(item.renamed(called) for item in items if item.answer in called)
    recipe = read_recipe(way.recipe, [("seed", seed), *way.settings.items()], source)
    model = built(recipe, names)
    learn(recipe, model, Split("with none", names, train, (), ()), None, progress=False)
    return model.eval()


def _told(way: Way, model: AdaptedModel, classes: Classes, items: Sequence[Item]) -> Told:
    groups = [[item for item in items if item.answer in names] for names in (classes.known, classes.never_seen)]
    known, never_seen = (torch.cat(list(Inference(workers=0).logits(model, each))).double() for each in groups)
    count = len(classes.known)
    truth = torch.tensor([classes.known.index(item.answer) for item in groups[0]])
    right = known[:, :count].argmax(-1) == truth
    called_none = [float((found.argmax(-1) == count).double().mean()) for found in (known, never_seen)]
    auroc, refused = told_apart(way.score(known), way.score(never_seen))
    return Told(auroc, refused, float(right.double().mean()), (called_none[0], called_none[1]))


def _figures(told: Sequence[Told]) -> str:
    auroc = [each.auroc for each in told]
    refused, accuracy = 100 * mean(each.refused for each in told), 100 * mean(each.accuracy for each in told)
    return f"{mean(auroc):.3f} ± {pstdev(auroc):.3f}, {refused:.0f} %, {accuracy:.1f} %"


def _called_none(told: Sequence[Told]) -> str:
    known, never_seen = (100 * mean(shares) for shares in zip(*[each.called_none for each in told], strict=True))
    return f"{never_seen:.0f} % of the never-seen, {known:.0f} % of the known"


def _row(case: str, cells: dict[str, str]) -> Row:
    return {"case": case} | cells | {"text": " | ".join(f"{test} {cell}" for test, cell in cells.items())}
