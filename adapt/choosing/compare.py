"""Methods on the same folds of the same training images, and the one to take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder
from adapt.choosing.candidates import Candidate, Cost
from adapt.data.folds import folds, parts
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.devices import one_thread
from adapt.evaluation.inference import Inference
from adapt.evaluation.noise import standard_error
from adapt.models.classifier import AdaptedModel
from adapt.training.loop import Length
from adapt.training.result import Result
from adapt.training.run_recipe import build, images_a_class, learn, with_validation
from adapt.training.settings import TrainSettings

WITHIN = 2.0  # standard errors behind the best, up to which two methods are alike
SMALL = 2**25  # images times features times classes, up to which one thread is quicker than two
PILOT = 8  # a training through a tower is first tried at this fraction of its steps
_AT_ONCE: dict[str, Any] = {"warmup": 0.0, "warmup_epochs": 0, "average": None}  # a short training has no time for it
_PROBE: dict[str, Any] = {  # a few steps, whatever the recipe's schedule
    "epochs": None,
    "iterations": 5,
    "iterations_per_shot": None,
    "schedule": "constant",
    "warmup": 0.0,
    "average": None,
}


@dataclass(frozen=True)
class Compared:
    """What a candidate made of images that its models had not seen: probabilities `(n, classes)`, and which are right.

    `seconds` are those of one training, encoding apart; `size` is that of its adapter in bytes; `held_back`
    is how many images were in all for each that a model learned from: 0 where all answers are of one model, as it is.
    """

    candidate: Candidate
    probabilities: Tensor
    right: Tensor
    groups: tuple[str, ...]
    seconds: float
    size: int
    held_back: float

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def error(self) -> float:
        """The standard error of the accuracy, as an estimate for a model that learns from such images.

        The answers are no independent ones: the models of the parts learned from much the same images, and other images
        would have made other models. The variance of their share is larger by as many images as are held back for each
        that is learned from (Nadeau and Bengio, Inference for the Generalization Error, 2003): k / (k - 1) times for k
        parts, and not at all where nothing is learned. On few images it is no less than as if two more right
        and two more wrong were there (Agresti and Coull, 1998): by itself a share is too sure near 0 and 1.
        """
        count = len(set(self.groups)) + 4
        share = (self.accuracy * len(set(self.groups)) + 2) / count
        of_images = max(standard_error(self.right.double(), self.groups), (share * (1 - share) / count) ** 0.5)
        return float(of_images * (1 + self.held_back) ** 0.5)

    def behind(self, other: Compared) -> tuple[float, float]:
        """How far its accuracy is below another's on the same images, and the standard error of that."""
        apart = other.right.double() - self.right.double()
        return float(apart.mean()), standard_error(apart, self.groups)


class _Tried(NamedTuple):
    """Probabilities `(n, classes)` of the images at the places `held`, and what one training took and gave."""

    held: Sequence[int]
    probabilities: Tensor
    seconds: float
    size: int
    learned: bool


class Comparison:
    """The folds of one set of training images, on which candidates are tried one after the other."""

    def __init__(self, split: Split, backbone: Backbone, count: int, seed: int) -> None:
        self._split, self._backbone, self.count = split, backbone, count
        self._chosen = folds(split.train, count, seed)
        self._parts = list(parts(split, self._chosen, count))
        self._places = [place for place, fold in enumerate(self._chosen) if fold is not None]

    @property
    def items(self) -> list[Item]:
        """The images that are held back once; none where every class has one image, or images of one group."""
        return [self._split.train[place] for place in self._places]

    def run(self, candidate: Candidate) -> Compared:
        """Train the candidate once for each part of the images, and answer the part held back.

        AdaptError as `fit` raises it.
        """
        return self._compared(candidate, [self._tried(candidate, part, held) for part, held in self._parts])

    def raced(self, candidate: Candidate, best: Compared) -> Compared | str:
        """The candidate as `run` has it, or why it was given up on the first part.

        One without steps is given up where it is more than two standard errors behind `best` there; one with steps,
        which has to be better to be taken, where it is behind at all; and one whose steps pass through a tower where it
        is behind at an eighth of its steps already.
        """
        part, held = self._parts[0]
        if candidate.cost is Cost.STEPS_THROUGH_TOWERS:
            length, tried, whole = self._pilot(candidate, part)
            pilot = self._tried(candidate, part, held, {length: tried} | _AT_ONCE)
            if behind := self._behind(pilot, best, 0.0):
                return f"{behind}, after {tried} of {whole} {length}"
        first = self._tried(candidate, part, held)
        if behind := self._behind(first, best, WITHIN if candidate.cost is Cost.NO_STEP else 0.0):
            return behind
        return self._compared(candidate, [first, *(self._tried(candidate, *each) for each in self._parts[1:])])

    def _pilot(self, candidate: Candidate, part: Split) -> tuple[str, int, int]:
        """Epochs or iterations, how many of them are tried first, and how many the whole training has."""
        settings = self._settings(candidate, part)
        length = "epochs" if settings.epochs else "iterations"
        whole = getattr(settings, length)
        return length, max(1, whole // PILOT), whole

    def _settings(self, candidate: Candidate, part: Split) -> TrainSettings:
        assert candidate.recipe.train is not None
        return candidate.recipe.train.at(candidate.recipe.data.shots or images_a_class(part))

    def _threads(self, candidate: Candidate) -> AbstractContextManager[None]:
        """One thread for steps and solvers on few features, where several mostly wait for one another."""
        assert isinstance(self._backbone, DualEncoder)
        numbers = len(self._split.train) * self._backbone.embed_dim * len(self._split.class_names)
        small = numbers < SMALL and candidate.cost < Cost.STEPS_THROUGH_TOWERS
        return one_thread() if small else nullcontext()

    def _behind(self, tried: _Tried, best: Compared, errors: float) -> str:
        """How far behind `best` on a part, where that is more than so many standard errors; "" where it is not."""
        numbers = {place: number for number, place in enumerate(self._places)}
        chosen = [numbers[place] for place in tried.held]
        apart = best.right[chosen].double() - self._right(tried.probabilities, tried.held).double()
        behind, error = float(apart.mean()), standard_error(apart, [best.groups[number] for number in chosen])
        return (
            f"{100 * behind:.1f} points behind {best.candidate.name} on the first part"
            if behind > errors * error
            else ""
        )

    def _right(self, probabilities: Tensor, places: Sequence[int]) -> Tensor:
        items = [self._split.train[place] for place in places]
        return probabilities.argmax(-1) == self._split.task.numbers(items, self._split.class_names)

    def _tried(
        self, candidate: Candidate, part: Split, held: Sequence[int], changes: dict[str, Any] | None = None
    ) -> _Tried:
        with _quiet(), self._threads(candidate):
            started = time.monotonic()
            model, _ = _trained(candidate, part, self._backbone, changes)
            seconds = time.monotonic() - started
            probabilities = Inference().all_logits(model, part.test).float().softmax(-1).cpu()
            return _Tried(held, probabilities, seconds, _size(model), bool(model.method.state_dict()))

    def _compared(self, candidate: Candidate, parts: Sequence[_Tried]) -> Compared:
        found = torch.zeros(len(self._split.train), len(self._split.class_names))
        for each in parts:
            found[list(each.held)] = each.probabilities
        probabilities = found[self._places]
        groups = tuple(item.kept_with for item in self.items)
        right = self._right(probabilities, self._places)
        seconds, size = min(each.seconds for each in parts), parts[0].size
        learned_from = sum(len(part.train) for part, _ in self._parts) / len(self._parts)
        held_back = len(right) / learned_from if any(each.learned for each in parts) else 0.0
        return Compared(candidate, probabilities, right, groups, seconds, size, held_back)

    def estimate(self, candidate: Candidate) -> float:
        """Seconds that its steps take on one part, by a few of them; 0 for one without steps."""
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

    @property
    def trainings(self) -> int:
        """How often a candidate is trained that keeps up: on each part, and at last on all images."""
        return len(self._parts) + 1


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

    As good is what is behind the best by no more than two standard errors of the paired difference. Of those a recipe
    that says that it is preferred is taken, or else the best of those whose training costs least (`Cost`). Which one
    does not depend on seconds that were measured, nor on luck among methods that are alike.
    """
    best = max(compared, key=lambda each: each.accuracy)
    alike = [each for each in compared if _within(each, best)]
    alike.sort(key=lambda each: -each.accuracy)
    return min(alike, key=lambda each: (not each.candidate.preferred, each.candidate.cost)), alike


def _within(each: Compared, best: Compared) -> bool:
    apart, error = each.behind(best)
    return each is best or apart <= WITHIN * error


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
