"""Cross-validation of candidate methods on the same folds of the training images, and the choice among them.

Candidates are compared one after the other, and those that fall behind are dropped.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapt import tasks
from adapt.backbones.base import Backbone, ImageEncoder
from adapt.choosing.candidates import Candidate, Cost
from adapt.common import plain
from adapt.common.devices import one_thread
from adapt.common.disk import replacing
from adapt.common.errors import AdaptError
from adapt.common.progress import Progress, counted, readable_time
from adapt.common.version import __version__
from adapt.data.item import Item
from adapt.data.split import Split, by_stratum, folds, parts
from adapt.evaluation.flops import answer_flops
from adapt.evaluation.inference import Inference
from adapt.evaluation.intervals import NORMAL, Interval, standard_error
from adapt.evaluation.learning_curve import LearningCurve
from adapt.evaluation.scores import Scores
from adapt.formats import tensor_file
from adapt.models.image_model import ImageModel
from adapt.recipe import Recipe
from adapt.recipe.settings import TrainSettings
from adapt.training.fit import fit_plan
from adapt.training.loop import Length
from adapt.training.result import Result
from adapt.training.run_recipe import images_per_class, plan_recipe

logger = logging.getLogger("adapt")

_FOLD = tensor_file.What("fold", "delete it, and continue with --resume")
WITHIN = 2.0  # standard errors behind the best, up to which a method counts as equally good
TRIALS, HALVINGS = 10, 3  # of a learning curve: random halves, halves of these, and so on
SMALL = 2**25  # images times features times classes, up to which one thread is quicker than two
PILOT = 8  # a training through a tower is first tried for this fraction of its steps
_NO_WARM_UP: dict[str, object] = {"warmup": 0.0, "warmup_epochs": 0, "average": None}  # a short training has no time
# a few steps, whatever the recipe's schedule
_PROBE = _NO_WARM_UP | {"epochs": None, "iterations": 5, "iterations_per_shot": None, "schedule": "constant"}


@dataclass(frozen=True)
class Compared:
    """A candidate's answers `(n, k)` to held-out images, such as probabilities of classes, and their `scores`.

    `seconds` is the time of one training run without image encoding, and `size` is the size of the adapter in bytes.
    `answering` is the number of FLOPs that answering one image takes, with its encoding.
    `held_back` is the number of held-out images divided by the number of training images, or 0 if nothing is learned.
    `names` are those of the trainings on the folds.
    """

    candidate: Candidate
    answers: Tensor
    scores: Scores
    groups: tuple[str, ...]
    seconds: float
    size: int
    answering: int
    held_back: float
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.names[0] if len(set(self.names)) == 1 else self.candidate.name

    @cached_property
    def merits(self) -> Tensor:
        """The merit of each answer `(n,)`: whether it is right, or a number that is larger for better answers."""
        return self.scores.merits

    @property
    def merit(self) -> float:
        """The mean merit, by which candidates are ranked, such as the accuracy, or minus the mean absolute error."""
        return float(self.merits.double().mean())

    @property
    def error(self) -> float:
        """The standard error of the merit, as an estimate for a model trained on other images of the same kind.

        Predictions of different folds are not independent, because the training images of the folds overlap. Therefore
        the variance is multiplied by 1 + `held_back`, which is k / (k - 1) for k folds, and 1 if nothing is learned
        (Nadeau and Bengio, Inference for the Generalization Error, 2003). The error of an accuracy is at least that
        of a sample with two more right and two more wrong predictions (Agresti and Coull, 1998), because for few images
        the usual estimate is too small near accuracies of 0 and 1.
        """
        of_images = standard_error(self.merits.double(), self.groups)
        if self.merits.dtype == torch.bool:
            count = len(set(self.groups)) + 4
            share = (self.merit * len(set(self.groups)) + 2) / count
            of_images = max(of_images, (share * (1 - share) / count) ** 0.5)
        return float(of_images * (1 + self.held_back) ** 0.5)

    @property
    def interval(self) -> Interval:
        """The figure that is compared, plus and minus 1.96 of its `error`: its interval at 95 %.

        It is not that of a test set, because the folds share training images.
        """
        figure = self.scores.compared_by
        value, half = self.scores.figures()[figure.name], NORMAL * self.error
        return Interval(value - half, value + half).within(0, 1 if figure.share else math.inf)

    def behind(self, other: Compared) -> tuple[float, float]:
        """Return the merit of `other` minus this merit on the same images, and the paired standard error."""
        return _difference(other.merits, self.merits, self.groups)


def _difference(one: Tensor, other: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """Return the mean of `one` minus the mean of `other`, of merits of the same images, and the standard error."""
    apart = one.double() - other.double()
    return float(apart.mean()), standard_error(apart, groups)


class _Fold(NamedTuple):
    """The result on one fold: the answers `(n, k)` to the held-out images, such as probabilities of classes.

    `held` contains the indices of the held-out images among the training images. `seconds` is the training time, `size`
    is the size of the adapter in bytes, and `learned` is true if the adapter has tensors. `answering` is the number of
    FLOPs that answering one image takes; only the first fold measures it, and other folds have 0.
    """

    held: Sequence[int]
    answers: Tensor
    seconds: float
    size: int
    learned: bool
    answering: int
    name: str


class Comparison:
    """A comparison by cross-validation, in which all candidates use the same folds of the training images.

    Each is trained on that of the `backbones`, by name, which its recipe names. The results on folds are written to the
    folder `kept`, if given, and those that are there already are taken.
    """

    def __init__(
        self,
        split: Split,
        backbones: Mapping[str, ImageEncoder],
        count: int,
        seed: int,
        kept: Path | None = None,
    ) -> None:
        self._split, self._backbones, self.count, self._seed, self._kept = split, backbones, count, seed, kept
        self._number = {item: number for number, item in enumerate(split.train)}
        self._task = tasks.of(split.items())
        fold_of = folds(split.train, count, seed, split.task.one_class)
        self._parts = list(parts(split, fold_of, count))
        self._spent = 0.0  # seconds of all trainings
        self.estimates: dict[str, float] = {}  # seconds of a training on one fold, of the candidates asked for
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

    def baseline(self, recipe: Recipe) -> Compared | None:
        """Return the result of the answer that the task gives to any image, or None if there is no such answer."""
        name, results = "", []
        for part, held in self._parts:
            if (constant := self._task.constant(part.train, self._split.class_names)) is None:
                return None
            name, answer = constant
            results.append(_Fold(held, answer.expand(len(held), -1), 0.0, 0, True, 0, name))
        return self._pooled(Candidate(name, recipe, Cost.NO_STEP), results)

    def raced(self, candidate: Candidate, best: Compared, share: float | None = None) -> Compared | str:
        """Return the candidate's result on all folds, or a message if the candidate is dropped before.

        A candidate is dropped after a fold if its merit on the folds so far is more than two standard errors behind
        `best`. A costlier one than `best` is only chosen if it is more than two standard errors better (see `take`), so
        it is dropped if it is behind, or if one standard error more would not make it so much better on all folds; and
        it is not tried if `best` is right about every image. A candidate that trains through a tower is also dropped if
        it is behind after an eighth of its steps, or if a training takes more than a `share` of the time of all
        trainings before, if given.
        """
        costlier = candidate.cost > best.candidate.cost
        if costlier and best.merits.dtype == torch.bool and best.merits.all():
            return f"{best.name} is right about every image"
        if candidate.cost is Cost.STEPS_THROUGH_TOWERS:
            part, held = self._parts[0]
            settings, spent = self._settings(candidate, part), self._spent
            unit = "epochs" if settings.epochs else "iterations"
            total = getattr(settings, unit)
            short = max(1, total // PILOT)
            pilot = self._tried(candidate, part, held, {unit: short} | _NO_WARM_UP)
            if behind := self._behind([pilot], best, 0.0):
                return f"{behind} on the first fold after {short} of {total} {unit}"
            if share is not None and (seconds := self.estimate(candidate)) > share * spent:
                return (
                    f"a training takes {readable_time(seconds)}, more than {share:.0%} of the {readable_time(spent)} "
                    "of all before: --all or --budget compares it"
                )
        folds = list[_Fold]()
        for part, held in self._parts:
            folds.append(self._tried(candidate, part, held))
            share_held = sum(len(fold.held) for fold in folds) / len(self._places)
            errors = min(0.0, 1 - WITHIN * share_held**0.5) if costlier else WITHIN
            if len(folds) < len(self._parts) and (behind := self._behind(folds, best, errors)):
                return f"{behind} on the first {'fold' if len(folds) == 1 else f'{len(folds)} folds'}"
        return self._pooled(candidate, folds)

    def estimate(self, candidate: Candidate) -> float:
        """Return the estimated training time on one fold in seconds, measured over a few steps; 0 without steps."""
        if candidate.recipe.train is None:
            return 0.0
        if candidate.name in self.estimates:
            return self.estimates[candidate.name]
        part, _ = self._parts[0]
        settings = self._settings(candidate, part)
        with _quiet(), self._threads(candidate):
            _, result = _trained(candidate, part, self._backbones[candidate.recipe.backbone], _PROBE)
        batches = max(1, len(part.train) // settings.batch_size)
        images = min(settings.batch_size * settings.accumulate, len(part.train))  # of a step
        quickest = max(entry["images_per_second"] for entry in result.history)  # the first steps are slow ones
        self.estimates[candidate.name] = Length.of(settings, batches).steps * images / quickest
        return self.estimates[candidate.name]

    def curve(
        self, candidate: Candidate, target: float | None, progress: Progress | None = None, least: int = 1
    ) -> LearningCurve:
        """Return the learning curve of a candidate on the test images, up to all training images.

        It learns from half of the training images of each class, from half of these, and so on, three times but not
        below `least` images, and all of this ten times. Raises AdaptError like `fit`.
        """
        split, rows = self._split, list[list[float]]()
        whole = self._on_test(candidate, split.train)
        for trial in counted(range(TRIALS), TRIALS, progress):
            halves = [random.Random(f"{self._seed} {trial}").sample(split.train, len(split.train))]
            while len(halves) <= HALVINGS and max(map(len, groups := by_stratum(halves[-1]))) > least:
                halves.append([item for group in groups for item in group[: -(-len(group) // 2)]])
            try:
                rows.append([*(self._on_test(candidate, half) for half in halves[:0:-1]), whole])
            except AdaptError:  # of a method that compares images of one class
                if least > 1:
                    raise
                return self.curve(candidate, target, progress, 2)
        images, classes = len(split.train), len(split.class_names)
        per_group = images / len({item.kept_with for item in split.train})
        return LearningCurve.of([len(half) / classes for half in halves[::-1]], np.array(rows), target, per_group)

    def _on_test(self, candidate: Candidate, train: Sequence[Item]) -> float:
        fold = self._tried(candidate, replace(self._split, train=tuple(train)), ())
        return self._task.scores(self._split.test, fold.answers, self._split.class_names).accuracy

    def _settings(self, candidate: Candidate, part: Split) -> TrainSettings:
        assert candidate.recipe.train is not None
        return candidate.recipe.train.at(images_per_class(candidate.recipe, part))

    def _threads(self, candidate: Candidate) -> AbstractContextManager[None]:
        """Return a context that limits torch to one thread if the candidate trains on few features."""
        wide = self._backbones[candidate.recipe.backbone].embed_dim
        numbers = len(self._split.train) * wide * len(self._split.class_names)
        small = numbers < SMALL and candidate.cost < Cost.STEPS_THROUGH_TOWERS
        return one_thread() if small else nullcontext()

    def _behind(self, folds: Sequence[_Fold], best: Compared, errors: float) -> str:
        """Return a message if the merit on some folds is over `errors` standard errors behind `best`, otherwise ""."""
        numbers = {place: number for number, place in enumerate(self._places)}
        places = [place for fold in folds for place in fold.held]
        held = [numbers[place] for place in places]
        answers = torch.cat([fold.answers for fold in folds])
        scores, best_scores = (self._scores(each, places) for each in (answers, best.answers[held]))
        behind, error = _difference(best_scores.merits, scores.merits, [best.groups[number] for number in held])
        if behind <= errors * error:
            return ""
        figure, shown = scores.compared_by, scores.compared_by.text(abs(behind))
        if shown == figure.text(0.0):
            return f"no better than {best.name}"
        points = " points" * figure.share
        return f"only {shown}{points} better than {best.name}" if behind < 0 else f"{shown}{points} behind {best.name}"

    def _scores(self, answers: Tensor, places: Sequence[int]) -> Scores:
        items = [self._split.train[place] for place in places]
        return self._task.scores(items, answers, self._split.class_names)

    def _tried(
        self, candidate: Candidate, part: Split, held: Sequence[int], changes: dict[str, object] | None = None
    ) -> _Fold:
        learned = [self._number[item] for item in part.train]
        recipe = candidate.recipe.model_dump(mode="json", exclude={"device"})
        told = plain.dump([__version__, recipe, changes, held, learned])
        path = None if self._kept is None else self._kept / hashlib.sha256(told.encode()).hexdigest()
        if path is not None and path.is_file():
            figures = plain.parse(tensor_file.describe(path, _FOLD).metadata["figures"])
            fold = _Fold(held, tensor_file.read(path, _FOLD)["answers"], *figures)
            self._spent += fold.seconds
            return fold
        with _quiet(), self._threads(candidate):
            started = time.monotonic()
            model, result = _trained(candidate, part, self._backbones[candidate.recipe.backbone], changes)
            seconds = time.monotonic() - started
            answers = self._task.answers(model, part.test, Inference())
            with TemporaryDirectory() as folder:
                size = model.save(Path(folder) / "adapter.safetensors").stat().st_size
            answering = answer_flops(model) if part is self._parts[0][0] else 0
        has_tensors = bool(model.method.state_dict())
        fold = _Fold(held, answers, seconds, size, has_tensors, answering, candidate.called(result))
        self._spent += seconds
        if path is not None:
            with replacing(path) as temporary:
                tensor_file.write({"answers": answers}, temporary, {"figures": plain.dump(fold[2:])})
        return fold

    def _pooled(self, candidate: Candidate, results: Sequence[_Fold]) -> Compared:
        by_place = torch.zeros(len(self._split.train), results[0].answers.shape[1], dtype=results[0].answers.dtype)
        for each in results:
            by_place[list(each.held)] = each.answers
        answers = by_place[self._places]
        learned_from = sum(len(part.train) for part, _ in self._parts) / len(self._parts)
        return Compared(
            candidate,
            answers,
            self._scores(answers, self._places),
            groups=tuple(item.kept_with for item in self.items),
            seconds=min(each.seconds for each in results),
            size=results[0].size,
            answering=results[0].answering,
            held_back=len(self._places) / learned_from if any(each.learned for each in results) else 0.0,
            names=tuple(each.name for each in results),
        )


def _trained(
    candidate: Candidate, split: Split, backbone: Backbone, changes: dict[str, object] | None = None
) -> tuple[ImageModel, Result]:
    """Train the candidate on `split` with `changes` to the training settings, and return the model and the result."""
    recipe = candidate.recipe  # uncalibrated unless that was asked for, as a temperature changes no answer
    recipe = recipe.model_copy(update={"calibrate": bool(recipe.calibrate)})
    plan = plan_recipe(recipe, replace(split, test=()), backbone, **changes or {})
    assert isinstance(plan.model, ImageModel)  # candidates are for encoders of images
    return plan.model, fit_plan(plan, None)


def take(compared: Sequence[Compared]) -> tuple[Compared, list[Compared]]:
    """Return the chosen method, and all methods that are as good as the best method within the noise, the best first.

    A method is equally good if it is at most two standard errors of the paired difference behind the best method. Among
    the equally good methods on the best one's backbone, a preferred method is chosen, or else the most accurate method
    of the cheapest kind of training (`Cost`). The choice among them does not depend on measured times, nor on luck.
    """
    best = max(compared, key=lambda each: each.merit)
    alike = []
    for each in sorted(compared, key=lambda each: -each.merit):
        behind, error = each.behind(best)
        if behind <= WITHIN * error:
            alike.append(each)
    beside = [each for each in alike if each.candidate.recipe.backbone == best.candidate.recipe.backbone]
    return min(beside, key=lambda each: (not each.candidate.preferred, each.candidate.cost)), alike


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence log messages below the level of errors in the `with` block, which trains many models."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


BASELINE = "zero_shot"  # always measured in full: it shows whether class names help
SHARE = 0.25  # of the time of all before, above which a training is not begun unless it was asked for
KEPT_UP = 1, 4  # prior for the time left: of methods with steps, one in four keeps up


def race(
    comparison: Comparison, listed: Sequence[Candidate], budget: float | None, progress: bool
) -> tuple[list[Compared], dict[str, str]]:
    """Compare the `listed` candidates; return the results, and a dict of reasons why candidates were dropped or failed.

    A candidate that is not marked `always` is compared only if the `budget`, in seconds, leaves time for it. Raises
    AdaptError if no candidate could be trained.
    """
    compared, left_out = list[Compared](), dict[str, str]()
    ran: list[tuple[Candidate, float]] = []  # candidates that had their turn, and the seconds it took
    share = SHARE if all(candidate.always for candidate in listed) else None  # or else slow ones are wanted
    until = math.inf if budget is None else time.monotonic() + budget
    for candidate in listed:
        if candidate.cost is not Cost.NO_STEP and (candidate.always or budget is None):
            with suppress(AdaptError, torch.OutOfMemoryError):  # reported when its turn comes
                comparison.estimate(candidate)
    for number, candidate in enumerate(listed, 1):
        started = time.monotonic()
        try:
            late = "" if candidate.always or budget is None else _late(comparison, candidate, budget, until - started)
            if late:
                outcome: Compared | str = late
            elif candidate.recipe.method["name"] == BASELINE or not compared:
                outcome = comparison.run(candidate)
            else:
                outcome = comparison.raced(candidate, max(compared, key=lambda each: each.merit), share)
        except (AdaptError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
            outcome = str(error)
        ran.append((candidate, time.monotonic() - started))
        if isinstance(outcome, str):
            left_out[candidate.name] = outcome
            told = f"left out: {outcome}"
        else:
            compared.append(outcome)
            figure, figures = outcome.scores.compared_by, outcome.scores.figures()
            told = f"{figure.text(figures[figure.name]):>5} ± {figure.text(outcome.error)} {figure.unit}"
        if progress:
            others = listed[number:]
            left = f"  (about {readable_time(_left(comparison, ran, compared, others))} left)" if others else ""
            logger.info("  %2d of %d  %-22s %s%s", number, len(listed), candidate.name, told, left)
    if listed and not compared:
        name, reason = next(iter(left_out.items()))
        raise AdaptError(f"no method could be compared; for example, {name} failed: {reason}")
    named = {each.name: each for each in sorted(compared, key=lambda each: each.candidate.preferred)}
    return list(named.values()), left_out  # once, if a variant is its recipe after all


def _late(comparison: Comparison, candidate: Candidate, budget: float, left: float) -> str:
    """Return a message if the seconds that are `left` of the `budget` do not suffice for the candidate, else ""."""
    needed = comparison.trainings * comparison.estimate(candidate) if left > 0 else 0.0
    if needed < left:
        return ""
    more = f"it would take about {readable_time(needed)} more" if needed else "there was no time to begin"
    return f"{more}, and the budget is {readable_time(budget)}"


def _left(
    comparison: Comparison,
    ran: Sequence[tuple[Candidate, float]],
    compared: Sequence[Compared],
    others: Sequence[Candidate],
) -> float:
    """Estimate the seconds for the candidates `others`, if they are dropped as often as those that `ran` before."""
    folds = comparison.trainings - 1
    plain = [seconds for candidate, seconds in ran if candidate.cost is Cost.NO_STEP]
    each_plain = sum(plain) / max(1, len(plain))
    stepped = [candidate.name for candidate, _ in ran if candidate.cost is not Cost.NO_STEP]
    kept_up = sum(each.candidate.name in stepped for each in compared)
    likely = (KEPT_UP[0] + kept_up) / (KEPT_UP[1] + len(stepped))
    overhead = min(plain, default=0.0) / folds  # of any training, apart from its steps
    trainings = {
        Cost.STEPS_ON_FEATURES: 1 + likely * (folds - 1),
        Cost.STEPS_THROUGH_TOWERS: 1 / PILOT + likely * folds,
    }
    return sum(
        each_plain
        if each.cost is Cost.NO_STEP
        else trainings[each.cost] * (overhead + comparison.estimates.get(each.name, 0.0))
        for each in others
    )
