"""Images of no known class: how well each score tells them from known ones, and the accuracy on the known ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, pstdev

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.data import Item, Split
from adapt.evaluation.inference import Inference
from adapt.recipe import read_recipe
from benchmarks.drawings import SEEN, UNSEEN, drawings, trained
from benchmarks.first_hour import FOLDER
from benchmarks.measure import Row
from benchmarks.ordinary_folders import write

SEEDS = (1, 2, 3)
SHOTS = 16
NONE = "none"
KNOWN = {"emoji": 12, "digits": 6, "textures": 6}  # how many classes of each data set are known


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: known ones, others that stand for `none` in training, and those seen only in tests."""

    known: tuple[str, ...]
    others: tuple[str, ...]
    never_seen: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """A recipe, whether it learns a class `none`, and how known an image is by its logits `(n, classes)`."""

    recipe: str
    settings: Mapping[str, object]
    with_none: bool
    score: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Detection:
    """The separation of known from never-seen images by one model."""

    auroc: float
    refused: float
    accuracy: float
    called_none: tuple[float, float]  # shares of the known and of the never-seen images whose likeliest class is none


def largest_probability(logits: Tensor) -> Tensor:
    """Return the log-probability of the likeliest class `(n,)`: near 1 the probabilities themselves would be equal."""
    return logits.log_softmax(-1).max(-1).values


def of_some_class(logits: Tensor) -> Tensor:
    """Return the negative log-probability of `none`, the last class `(n,)`."""
    return -logits.log_softmax(-1)[:, -1]


def of_known_ones(logits: Tensor) -> Tensor:
    """Return the log-probability of the likeliest class without `none`, the last one `(n,)`."""
    return largest_probability(logits[:, :-1])


def largest_cosine(logits: Tensor) -> Tensor:
    """Return the cosine with the nearest class mean, times the backbone's scale `(n,)`."""
    return logits.max(-1).values


_LDA: dict[str, object] = {"method.words": None, "calibrate": True}
WAYS = {
    "zero-shot, its largest probability": Way("zero_shot", {}, False, largest_probability),
    "lda, a class none": Way("lda", _LDA, True, of_some_class),
    "detpro, background": Way("detpro", {"method.background": NONE}, True, of_known_ones),
    "lda, its largest probability": Way("lda", _LDA, False, largest_probability),
    "nearest_mean, its largest cosine": Way("nearest_mean", {}, False, largest_cosine),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report AUROC, never-seen images refused while nine tenths of the known ones pass, and accuracy on these."""
    for name, way in WAYS.items():
        results: dict[str, list[Detection]] = {}
        for source in KNOWN:
            progress(f"{name}: {source}")
            results |= _on(source, way)
        yield _row(name, {test: _figures(each) for test, each in results.items()})
        if way.with_none:
            yield _row("  called none", {test: _called_none(each) for test, each in results.items()})


def divided(class_names: Sequence[str], known: int) -> list[Classes]:
    """Return three divisions of the classes, each shifted by a third; every second unknown class is for training."""
    third, divisions = len(class_names) // 3, []
    for start in (0, third, 2 * third):
        names = (*class_names[start:], *class_names[:start])
        divisions.append(Classes(names[:known], names[known::2], names[known + 1 :: 2]))
    return divisions


def told_apart(known: Tensor, never_seen: Tensor) -> tuple[float, float]:
    """Return the AUROC of scores, and the share of `never_seen` below a threshold that nine tenths of `known` reach."""
    from sklearn.metrics import roc_auc_score

    is_known = torch.arange(len(known) + len(never_seen)) < len(known)
    threshold = known.sort().values[len(known) // 10]
    auroc = roc_auc_score(is_known.numpy(), torch.cat([known, never_seen]).numpy())
    return float(auroc), float((never_seen < threshold).double().mean())


def _on(source: str, way: Way) -> dict[str, list[Detection]]:
    """Return how models of all divisions and seeds do, by the name of the test."""
    if source == "emoji":
        split, tests = drawings(SEEN), {"emoji": drawings(SEEN).test, "of an unseen style": drawings(UNSEEN).test}
        place = SEEN
    else:
        place = str(write(source, FOLDER))
        split = adapt.data.load(place)
        tests = {source: split.test}
    results: dict[str, list[Detection]] = {test: [] for test in tests}
    for classes, seed in product(divided(split.class_names, KNOWN[source]), SEEDS):
        model = _trained(way, place, split.few_shot(SHOTS, seed).train, classes, seed)
        for test, items in tests.items():
            results[test].append(_detection(way, model, classes, items))
    return results


def _trained(way: Way, source: str, items: Sequence[Item], classes: Classes, seed: int) -> AdaptedModel:
    """Train on a split that has training images only, so that these choose the settings too."""
    names = (*classes.known, NONE) if way.with_none else classes.known
    renamed = {name: name for name in classes.known} | dict.fromkeys(classes.others if way.with_none else (), NONE)
    train = tuple(item.renamed(renamed) for item in items if item.answer in renamed)
    recipe = read_recipe(way.recipe, [("seed", seed), *way.settings.items()], source)
    return trained(recipe, Split("with none", names, train, (), ()))


def _detection(way: Way, model: AdaptedModel, classes: Classes, items: Sequence[Item]) -> Detection:
    groups = [[item for item in items if item.answer in names] for names in (classes.known, classes.never_seen)]
    known, never_seen = (torch.cat(list(Inference(workers=0).logits(model, each))).double() for each in groups)
    count = len(classes.known)
    truth = torch.tensor([classes.known.index(item.answer) for item in groups[0]])
    right = known[:, :count].argmax(-1) == truth
    called_none = [float((logits.argmax(-1) == count).double().mean()) for logits in (known, never_seen)]
    auroc, refused = told_apart(way.score(known), way.score(never_seen))
    return Detection(auroc, refused, float(right.double().mean()), (called_none[0], called_none[1]))


def _figures(results: Sequence[Detection]) -> str:
    auroc = [each.auroc for each in results]
    refused, accuracy = 100 * mean(each.refused for each in results), 100 * mean(each.accuracy for each in results)
    return f"{mean(auroc):.3f} ± {pstdev(auroc):.3f}, {refused:.0f} %, {accuracy:.1f} %"


def _called_none(results: Sequence[Detection]) -> str:
    known, never_seen = (100 * mean(shares) for shares in zip(*[each.called_none for each in results], strict=True))
    return f"{never_seen:.0f} % of the never-seen, {known:.0f} % of the known"


def _row(case: str, cells: dict[str, str]) -> Row:
    return {"case": case, **cells, "text": " | ".join(f"{test} {cell}" for test, cell in cells.items())}
