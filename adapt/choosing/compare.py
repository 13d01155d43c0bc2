"""Cross-validation of candidate methods on the same folds of the training images, and the choice among them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from adapt.backbones.base import Backbone, ImageEncoder
from adapt.choosing.candidates import Candidate, Cost
from adapt.common.devices import one_thread
from adapt.data.folds import folds, parts
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.evaluation.flops import answer_flops
from adapt.evaluation.inference import Inference
from adapt.evaluation.noise import standard_error
from adapt.models.image_model import ImageModel
from adapt.recipe.settings import TrainSettings
from adapt.training.fit import train
from adapt.training.loop import Length
from adapt.training.result import Result
from adapt.training.run_recipe import build, images_per_class, training_of, with_validation

WITHIN = 2.0  # standard errors behind the best, up to which a method counts as equally good
SMALL = 2**25  # images times features times classes, up to which one thread is quicker than two
PILOT = 8  # a training through a tower is first tried for this fraction of its steps
_NO_WARM_UP: dict[str, object] = {"warmup": 0.0, "warmup_epochs": 0, "average": None}  # a short training has no time
_PROBE: dict[str, object] = {  # a few steps, whatever the recipe's schedule
    "epochs": None,
    "iterations": 5,
    "iterations_per_shot": None,
    "schedule": "constant",
    "warmup": 0.0,
    "average": None,
}


@dataclass(frozen=True)
class Compared:
    """A candidate's predictions on held-out images: probabilities `(n, classes)`, and flags for `right` predictions.

    `seconds` is the time of one training run without image encoding, and `size` is the size of the adapter in bytes.
    `answering` is the number of FLOPs that answering one image takes, with its encoding.
    `held_back` is the number of held-out images divided by the number of training images, or 0 if nothing is learned.
    `names` are those of the trainings on the folds.
    """

    candidate: Candidate
    probabilities: Tensor
    right: Tensor
    groups: tuple[str, ...]
    seconds: float
    size: int
    answering: int
    held_back: float
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0] if len(set(self.names)) == 1 else self.candidate.name

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def error(self) -> float:
        """The standard error of the accuracy, as an estimate for a model trained on other images of the same kind.

        Predictions of different folds are not independent, because the training images of the folds overlap. Therefore
        the variance is multiplied by 1 + `held_back`, which is k / (k - 1) for k folds, and 1 if nothing is learned
        (Nadeau and Bengio, Inference for the Generalization Error, 2003). The error is at least the error of a sample
        with two more right and two more wrong predictions (Agresti and Coull, 1998), because for few images the usual
        estimate is too small near accuracies of 0 and 1.
        """
        count = len(set(self.groups)) + 4
        share = (self.accuracy * len(set(self.groups)) + 2) / count
        of_images = max(standard_error(self.right.double(), self.groups), (share * (1 - share) / count) ** 0.5)
        return float(of_images * (1 + self.held_back) ** 0.5)

    def behind(self, other: Compared) -> tuple[float, float]:
        """Return the accuracy of `other` minus this accuracy on the same images, and the paired standard error."""
        return _difference(other.right, self.right, self.groups)


def _difference(one: Tensor, other: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """Return the accuracy of `one` minus the accuracy of `other` on the same images, and the paired standard error."""
    apart = one.double() - other.double()
    return float(apart.mean()), standard_error(apart, groups)


class _Fold(NamedTuple):
    """The result on one fold: predicted probabilities `(n, classes)` of the held-out images.

    `held` contains the indices of the held-out images among the training images. `seconds` is the training time, `size`
    is the size of the adapter in bytes, and `learned` is true if the adapter has tensors. `answering` is the number of
    FLOPs that answering one image takes; only the first fold measures it, and other folds have 0.
    """

    held: Sequence[int]
    probabilities: Tensor
    seconds: float
    size: int
    learned: bool
    answering: int
    name: str


class Comparison:
    """A comparison by cross-validation, in which all candidates use the same folds of the training images."""

    def __init__(self, split: Split, backbone: Backbone, count: int, seed: int) -> None:
        self._split, self._backbone, self.count = split, backbone, count
        fold_of = folds(split.train, count, seed)
        self._parts = list(parts(split, fold_of, count))
        self._places = [place for place, fold in enumerate(fold_of) if fold is not None]

    @property
    def items(self) -> list[Item]:
        """The training images that are held out in some fold; a class with one image or group has no such images."""
        return [self._split.train[place] for place in self._places]

    @property
    def trainings(self) -> int:
        """The number of training runs of a candidate that is not dropped: one per fold, and one on all images."""
        return len(self._parts) + 1

    def run(self, candidate: Candidate) -> Compared:
        """Train the candidate on each fold, and return the result on held-out images. Raises AdaptError like `fit`."""
        return self._pooled(candidate, [self._tried(candidate, part, held) for part, held in self._parts])

    def raced(self, candidate: Candidate, best: Compared) -> Compared | str:
        """Return the candidate's result on all folds, or a message if the candidate is dropped after the first fold.

        A candidate without training steps is dropped if its accuracy on the first fold is more than two standard errors
        behind `best`. A candidate with training steps has to be better to be chosen, and is dropped if it is behind at
        all. A candidate that trains through a tower is also dropped if it is behind after an eighth of its steps.
        """
        part, held = self._parts[0]
        if candidate.cost is Cost.STEPS_THROUGH_TOWERS:
            settings = self._settings(candidate, part)
            unit = "epochs" if settings.epochs else "iterations"
            total = getattr(settings, unit)
            short = max(1, total // PILOT)
            pilot = self._tried(candidate, part, held, {unit: short} | _NO_WARM_UP)
            if behind := self._behind(pilot, best, 0.0):
                return f"{behind} after {short} of {total} {unit}"
        first = self._tried(candidate, part, held)
        if behind := self._behind(first, best, WITHIN if candidate.cost is Cost.NO_STEP else 0.0):
            return behind
        return self._pooled(candidate, [first, *(self._tried(candidate, *each) for each in self._parts[1:])])

    def estimate(self, candidate: Candidate) -> float:
        """Return the estimated training time on one fold in seconds, measured over a few steps; 0 without steps."""
        if candidate.recipe.train is None:
            return 0.0
        part, _ = self._parts[0]
        settings = self._settings(candidate, part)
        with _quiet(), self._threads(candidate):
            _, result = _trained(candidate, part, self._backbone, _PROBE)
        batches = max(1, len(part.train) // settings.batch_size)
        images = min(settings.batch_size * settings.accumulate, len(part.train))  # of a step
        quickest = max(entry["images_per_second"] for entry in result.history)  # the first steps are slow ones
        return Length.of(settings, batches).steps * images / quickest

    def _settings(self, candidate: Candidate, part: Split) -> TrainSettings:
        assert candidate.recipe.train is not None
        return candidate.recipe.train.at(images_per_class(candidate.recipe, part))

    def _threads(self, candidate: Candidate) -> AbstractContextManager[None]:
        """Return a context that limits torch to one thread if the candidate trains on few features."""
        assert isinstance(self._backbone, ImageEncoder)
        numbers = len(self._split.train) * self._backbone.embed_dim * len(self._split.class_names)
        small = numbers < SMALL and candidate.cost < Cost.STEPS_THROUGH_TOWERS
        return one_thread() if small else nullcontext()

    def _behind(self, fold: _Fold, best: Compared, errors: float) -> str:
        """Return a message if the accuracy on a fold is over `errors` standard errors behind `best`, otherwise ""."""
        numbers = {place: number for number, place in enumerate(self._places)}
        held = [numbers[place] for place in fold.held]
        right = self._right(fold.probabilities, fold.held)
        behind, error = _difference(best.right[held], right, [best.groups[number] for number in held])
        if behind <= errors * error:
            return ""
        return f"{100 * behind:.1f} points behind {best.name} on the first fold"

    def _right(self, probabilities: Tensor, places: Sequence[int]) -> Tensor:
        items = [self._split.train[place] for place in places]
        return probabilities.argmax(-1) == self._split.task.numbers(items, self._split.class_names)

    def _tried(
        self, candidate: Candidate, part: Split, held: Sequence[int], changes: dict[str, object] | None = None
    ) -> _Fold:
        with _quiet(), self._threads(candidate):
            started = time.monotonic()
            model, result = _trained(candidate, part, self._backbone, changes)
            seconds = time.monotonic() - started
            probabilities = Inference().all_logits(model, part.test).float().softmax(-1).cpu()
            with TemporaryDirectory() as folder:
                size = model.save(Path(folder) / "adapter.safetensors").stat().st_size
            answering = answer_flops(model) if part is self._parts[0][0] else 0
            learned = bool(model.method.state_dict())
            return _Fold(held, probabilities, seconds, size, learned, answering, candidate.called(result))

    def _pooled(self, candidate: Candidate, results: Sequence[_Fold]) -> Compared:
        by_place = torch.zeros(len(self._split.train), len(self._split.class_names))
        for each in results:
            by_place[list(each.held)] = each.probabilities
        probabilities = by_place[self._places]
        right = self._right(probabilities, self._places)
        learned_from = sum(len(part.train) for part, _ in self._parts) / len(self._parts)
        return Compared(
            candidate,
            probabilities,
            right,
            groups=tuple(item.kept_with for item in self.items),
            seconds=min(each.seconds for each in results),
            size=results[0].size,
            answering=results[0].answering,
            held_back=len(right) / learned_from if any(each.learned for each in results) else 0.0,
            names=tuple(each.name for each in results),
        )


def _trained(
    candidate: Candidate, split: Split, backbone: Backbone, changes: dict[str, object] | None = None
) -> tuple[ImageModel, Result]:
    """Train the candidate on `split` with `changes` to the training settings, and return the model and the result."""
    recipe = candidate.recipe  # uncalibrated unless that was asked for, as a temperature changes no answer
    recipe = recipe.model_copy(update={"calibrate": bool(recipe.calibrate)})
    model = build(recipe, split.class_names, backbone)
    assert isinstance(model, ImageModel)  # candidates are for encoders of images
    untested = replace(with_validation(split, recipe), test=())
    return model, train(training_of(recipe, model, untested, **changes or {}), None)


def take(compared: Sequence[Compared]) -> tuple[Compared, list[Compared]]:
    """Return the chosen method, and all methods that are as good as the best method within the noise, the best first.

    A method is equally good if it is at most two standard errors of the paired difference behind the best method. Among
    the equally good methods, a preferred method is chosen, or else the most accurate method of the cheapest kind of
    training (`Cost`). The choice does not depend on measured times, nor on luck among equally good methods.
    """
    best = max(compared, key=lambda each: each.accuracy)
    alike = []
    for each in sorted(compared, key=lambda each: -each.accuracy):
        behind, error = each.behind(best)
        if behind <= WITHIN * error:
            alike.append(each)
    return min(alike, key=lambda each: (not each.candidate.preferred, each.candidate.cost)), alike


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence log messages below the level of errors in the `with` block, which trains many models."""
    logger = logging.getLogger("adapt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
