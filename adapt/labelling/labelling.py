"""The labelling of images by a person: questions, answers, and a round of training after every few answers."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adapt import plain
from adapt.data.bags import has_bags
from adapt.data.check import broken_images, untested
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.devices import AUTO
from adapt.disk import write_csv, write_text
from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.labelling import decisions as deciding
from adapt.labelling.decisions import Decision, applied
from adapt.labelling.proposing import as_listed, in_order
from adapt.labelling.questions import Doubt, Question, doubts_in, unlabelled_in
from adapt.loading import load
from adapt.models.image_model import ImageModel
from adapt.progress import counting_bar
from adapt.training.relisted import LIST, RECIPE, ROOT, check_listable, on_list, recipe_of, write_list
from adapt.training.run_recipe import decodable, listed_data, run_recipe

logger = logging.getLogger("adapt")
DATA, DECISIONS, PROPOSALS, ROUNDS = "data.csv", "decisions.csv", "proposals.csv", "rounds.json"


class Round(BaseModel):
    """The result of a round of answers: how many were given, how many were as proposed, and what training gave.

    `before` and `accuracy` are those of the test images, in [0, 1], before and after the round; None without any.
    """

    round: int
    answers: int
    as_proposed: int
    train_images: int
    before: float | None
    accuracy: float | None


class Labelling:
    """Questions about images, a person's answers to them, and training on the answers, all of it kept in a folder.

    `run` is the folder of a run, whose adapter proposes labels. `sources` are folders or lists of further images, or
    lists of doubtful images of the run. The folder `out` gets decisions.csv after each answer, and data.csv (all images
    with their labels), rounds.json and the run of the round after each round. Answers that `out` has already are taken.

    Raises AdaptError if the run has another task than classification or another kind of backbone than an encoder of
    images, and if there is no image to ask about.
    """

    def __init__(
        self, run: Path, sources: Sequence[Path], out: Path, device: str = AUTO, progress: bool = True
    ) -> None:
        self.out, self._progress = out, progress
        self._recipe, self._recipe_file = recipe_of(run), run / RECIPE
        split = listed_data(self._recipe, unlabelled=True)
        check_listable(split)
        if has_bags(split.items()):
            raise AdaptError(f"{split.name} has items of several images, but only single images can be labelled")
        self._begun = decodable(split, self._recipe, progress)
        self._doubts: dict[str, Doubt] = {}
        for source in sources:
            self._doubts |= doubts_in(source, self._begun)
        if not self._doubts:
            self._begun = replace(self._begun, unlabelled=self._begun.unlabelled + self._new(sources))
        self._model = self._loaded(run, load(run, device=device))
        metrics = stored.read(run / "metrics.json", stored.Metrics, "metrics")
        self._accuracy: float | None = metrics.get("adapted", {}).get("accuracy")
        before = stored.read(out / ROUNDS, list[Round], "rounds") if (out / ROUNDS).exists() else []
        self.rounds = [Round(**each) for each in before]
        self._decisions = deciding.read(out / DECISIONS)
        self._taken: list[tuple[Question, Decision]] = []
        self.questions: list[Question] = []
        """The questions of this round."""

    def _new(self, sources: Sequence[Path]) -> tuple[Item, ...]:
        """Return the images in `sources` that the run does not have, without broken ones, which are logged."""
        new = unlabelled_in(sources, self._begun)
        with counting_bar("checking", self._progress) as bar:
            broken = broken_images(new, bar)
        for problem in broken.values():
            logger.warning("left out: %s", problem)
        new = [item for item in new if item.path not in broken]
        return untested(new, [*self._begun.items()], known="images of the run")

    def _loaded(self, run: Path, model: Any) -> ImageModel:
        if not isinstance(model, ImageModel) or tuple(model.class_names) != self._begun.class_names:
            raise AdaptError(
                f"{run} has an adapter of a {model.backbone.kind} with {len(model.class_names)} classes; expected one "
                f"of an encoder of images with the {len(self._begun.class_names)} classes of its data"
            )
        return model.eval()

    @property
    def split(self) -> Split:
        """The data with all answers so far."""
        return applied(self._begun, self._decisions)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes to choose from."""
        return self._begun.class_names

    @property
    def turned(self) -> bool:
        """Whether images are rotated upright by their EXIF orientation."""
        return self._begun.turned

    @property
    def left(self) -> list[Question]:
        """The questions of this round without an answer."""
        decided = {decision.path for _, decision in self._taken}
        return [each for each in self.questions if each.item.path not in decided]

    @property
    def answers(self) -> int:
        """The number of answers in this round."""
        return len(self._taken)

    @property
    def command(self) -> str:
        """A command that trains the run's recipe on the data with all answers."""
        exif = [] if self.turned else ["--set", "data.exif=stored"]
        data = ["--data", str(self.out / DATA), "--root", ROOT, "--shots", "all", *exif]
        return shlex.join(["adapt", "train", str(self._recipe_file), *data, "--out", f"{self.out}-trained"])

    def ask(self, count: int) -> list[Question]:
        """Begin a round of up to `count` questions: the most useful images, or the first doubtful ones of a list."""
        self._taken = []
        decided, split = {decision.path for decision in self._decisions}, self.split
        if self._doubts:
            known = {item.path: item for item in split.items()}
            items = [known[path] for path in self._doubts if path in known and path not in decided]
            self.questions = as_listed(self._model, items[:count], self._doubts, self._progress)
        else:
            pool = [item for item in split.unlabelled if item.path not in decided]
            seed = self._recipe.seed
            self.questions = in_order(self._model, pool, split.train, count, seed, self._progress)
        return self.questions

    def write(self) -> None:
        """Write data.csv, and proposals.csv with the questions of this round."""
        write_list(self.split, self.out / DATA)
        rows = [
            {
                "path": each.item.path,
                "label": each.label,
                "likeliest": each.likely[0][0],
                "probability": round(each.likely[0][1], 4),
                "why": each.why,
            }
            for each in self.questions
        ]
        if rows:
            write_csv(self.out / PROPOSALS, rows)

    def decide(self, decision: Decision) -> None:
        """Store the answer to a question of this round.

        Raises AdaptError for an image without a question, for an unknown class, and if a class lost its last image.
        """
        question = next((each for each in self.left if each.item.path == decision.path), None)
        if question is None:
            raise AdaptError(f"there is no open question about {decision.path!r}")
        deciding.check(decision, self._begun)
        if question.reviewed:
            applied(self._begun, [*self._decisions, decision])
        self._decisions.append(decision)
        self._taken.append((question, decision))
        deciding.write(self.out / DECISIONS, self._decisions)

    def undo(self) -> None:
        """Forget the last answer of this round, if there is one."""
        if self._taken:
            self._taken.pop()
            self._decisions.pop()
            deciding.write(self.out / DECISIONS, self._decisions)

    def learn(self) -> Round:
        """Train the run's recipe on all images that have a label now, and return the result of the round.

        Raises the errors of training; the answers are kept.
        """
        split, number = self.split, len(self.rounds) + 1
        while (folder := self.out / f"round-{number}").exists():  # one that was interrupted
            number += 1
        for path in (self.out / DATA, folder / LIST):
            write_list(split, path)
        recipe = on_list(self._recipe, folder / LIST, split.turned)
        backbone: Any = self._model.backbone  # of any kind that `load` has an overload for
        result = run_recipe(recipe, folder, progress=self._progress, split=split, backbone=backbone)
        before, self._accuracy = self._accuracy, result.metrics.get("adapted", {}).get("accuracy")
        as_proposed = [decision.label == question.label for question, decision in self._taken]
        outcome = Round(
            round=number,
            answers=self.answers,
            as_proposed=sum(as_proposed),
            train_images=len(split.train),
            before=before,
            accuracy=self._accuracy,
        )
        self.rounds.append(outcome)
        write_text(self.out / ROUNDS, plain.dump([each.model_dump() for each in self.rounds], indent=2) + "\n")
        self._model = self._loaded(folder, load(folder, backbone))
        return outcome
