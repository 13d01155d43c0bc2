"""Methods on the same folds of the same training images, and the one to take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.choosing.candidates import Candidate
from adapt.choosing.folds import folds, parts
from adapt.choosing.noise import standard_error
from adapt.data.split import Item, Split
from adapt.evaluation.evaluate import logits
from adapt.features import labels_of
from adapt.models.classifier import AdaptedModel
from adapt.training.loop import Length
from adapt.training.result import Result
from adapt.training.run_recipe import build, learn, with_validation

AS_QUICK = 2.0
_PROBE = {  # a few steps, whatever the recipe's schedule
    "epochs": None,
    "iterations": 3,
    "iterations_per_shot": None,
    "schedule": "constant",
    "warmup": 0.0,
    "average": None,
}


@dataclass(frozen=True)
class Compared:
    """What a candidate made of images that its models had not seen: probabilities `(n, classes)`, and which are right.

    `seconds` are those of one training, encoding apart; `size` is that of its adapter in bytes.
    """

    candidate: Candidate
    probabilities: Tensor
    right: Tensor
    groups: tuple[str, ...]
    seconds: float
    size: int

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def error(self) -> float:
        """The standard error of the accuracy; where all or none are right, as if two more of each had been tried."""
        if self.right.all() or not self.right.any():
            count = len(set(self.groups)) + 4
            return ((1 - 2 / count) * 2 / count / count) ** 0.5
        return standard_error(self.right.double(), self.groups)

    def behind(self, other: Compared) -> tuple[float, float]:
        """How far its accuracy is below another's on the same images, and the standard error of that."""
        apart = other.right.double() - self.right.double()
        return float(apart.mean()), standard_error(apart, self.groups)


class Comparison:
    """The folds of one set of training images, on which candidates are tried one after the other."""

    def __init__(self, split: Split, backbone: Backbone, count: int, seed: int) -> None:
        self._split, self._backbone = split, backbone
        self._chosen = folds(split.train, count, seed)
        self._parts = list(parts(split, self._chosen, count))
        self._places = [place for place, fold in enumerate(self._chosen) if fold is not None]

    @property
    def items(self) -> list[Item]:
        """The images that are held back once; none where every class has one image, or images of one group."""
        return [self._split.train[place] for place in self._places]

    def run(self, candidate: Candidate) -> Compared:
        """Trains the candidate once for each fold. AdaptError as `fit` raises it."""
        found = torch.zeros(len(self._split.train), len(self._split.class_names))
        seconds, size = [], 0
        with _quiet():
            for part, held in self._parts:
                started = time.monotonic()
                model, _ = _trained(candidate, part, self._backbone)
                seconds.append(time.monotonic() - started)
                found[held] = torch.cat(list(logits(model, part.test))).float().softmax(-1).cpu()
                size = size or _size(model)
        probabilities = found[self._places]
        right = probabilities.argmax(-1) == labels_of(self.items)
        groups = tuple(item.kept_with for item in self.items)
        return Compared(candidate, probabilities, right, groups, min(seconds), size)

    def estimate(self, candidate: Candidate) -> float:
        """Seconds that its steps will take here in all folds and on all images, by a few; 0 for one without steps."""
        if candidate.recipe.train is None:
            return 0.0
        part, _ = self._parts[0]
        settings = candidate.recipe.train.at(candidate.recipe.data.shots)
        with _quiet():
            _, result = _trained(candidate, part, self._backbone, _PROBE)
        batches = max(1, len(part.train) // settings.batch_size)
        each = settings.batch_size * settings.accumulate / result.history[-1]["images_per_second"]
        return (len(self._parts) + 1) * Length.of(settings, batches).steps * each


def _trained(
    candidate: Candidate, split: Split, backbone: Backbone, changes: dict[str, Any] | None = None
) -> tuple[AdaptedModel, Result]:
    """The candidate's model, trained on the split's own images, `changes` being other settings of the training."""
    recipe = candidate.recipe
    model = build(recipe, split.class_names, backbone)
    assert isinstance(model, AdaptedModel)  # candidates are of dual encoders
    untested = replace(with_validation(split, recipe), test=())
    return model, learn(recipe, model, untested, None, progress=False, **changes or {})


def take(compared: Sequence[Compared]) -> tuple[Compared, list[Compared]]:
    """The one to take, and all that are as good within the noise, the best first.

    As good is what is behind the best by no more than one standard error of the paired difference. Of those the one to
    take is the best of the quick: what trains in `AS_QUICK` times the least time, as times differ from run to run.
    """
    best = max(compared, key=lambda each: each.accuracy)
    alike = [each for each in compared if _within(each, best)]
    alike.sort(key=lambda each: -each.accuracy)
    least = min(each.seconds for each in alike)
    return next(each for each in alike if each.seconds <= AS_QUICK * least), alike


def _within(each: Compared, best: Compared) -> bool:
    apart, error = each.behind(best)
    return each is best or apart <= error * (
        1 + 1e-9
    )  # one image is just one standard error: not for rounding to decide


def _size(model: AdaptedModel) -> int:
    with TemporaryDirectory() as folder:
        return int(model.save(Path(folder) / "adapter.safetensors").stat().st_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, what each of many trainings would say of itself is not said."""
    logger = logging.getLogger("adapt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
