"""The labelling of images by a person: proposals, answers, and a round of training after every few answers."""

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
from adapt.labelling import annotations as annotating
from adapt.labelling.annotations import Annotation, applied
from adapt.labelling.proposals import Doubt, Proposal, doubts_in, unlabelled_in
from adapt.labelling.proposing import as_listed, in_order
from adapt.loading import load
from adapt.models.image_model import ImageModel
from adapt.progress import counting_bar
from adapt.training.relisted import LIST, RECIPE, ROOT, check_listable, on_list, recipe_of, write_list
from adapt.training.run_recipe import decodable, listed_data, run_recipe

logger = logging.getLogger("adapt")
DATA, ANNOTATIONS, PROPOSALS, ROUNDS = "data.csv", "annotations.csv", "proposals.csv", "rounds.json"


class LabelRound(BaseModel):
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
    """Proposed labels of images, a person's answers, and training on the answers, all of it kept in a folder.

    `run` is the folder of a run, whose adapter proposes labels. `sources` are folders or lists of further images, or
    lists of doubtful images of the run. The folder `out` gets annotations.csv after each answer, and data.csv (all
    images with their labels), rounds.json and the run of the round after each round. Answers that `out` has already are
    taken.

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
            if not self._begun.unlabelled:
                raise AdaptError("there are no unlabelled images: give a folder, a .csv or files with further images")
        rounds = stored.read(out / ROUNDS, list[LabelRound], "rounds") if (out / ROUNDS).exists() else []
        self.rounds = [LabelRound(**each) for each in rounds]
        latest = self._folder(self.rounds[-1].round) if rounds else run
        self._model = self._loaded(latest, load(latest, device=device))
        metrics = stored.read(latest / "metrics.json", stored.Metrics, "metrics")
        self._accuracy: float | None = metrics.get("adapted", {}).get("accuracy")
        self._annotations = annotating.read(out / ANNOTATIONS)
        self._taken: list[tuple[Proposal, Annotation]] = []
        self.proposals: list[Proposal] = []
        """The proposals of this round."""

    def _new(self, sources: Sequence[Path]) -> tuple[Item, ...]:
        """Return the images in `sources` that the run does not have, without broken ones, which are logged."""
        new = unlabelled_in(sources, self._begun)
        with counting_bar("checking", self._progress) as bar:
            broken = broken_images(new, bar)
        for problem in broken.values():
            logger.warning("left out: %s", problem)
        new = [item for item in new if item.path not in broken]
        return untested(new, [*self._begun.items()], known="images of the run")

    def _folder(self, number: int) -> Path:
        """Return the folder of the run of a round."""
        return self.out / f"round-{number}"

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
        return applied(self._begun, self._annotations)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes to choose from."""
        return self._begun.class_names

    @property
    def turned(self) -> bool:
        """Whether images are rotated upright by their EXIF orientation."""
        return self._begun.turned

    @property
    def left(self) -> list[Proposal]:
        """The proposals of this round without an answer."""
        decided = {annotation.path for _, annotation in self._taken}
        return [each for each in self.proposals if each.item.path not in decided]

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

    def propose(self, count: int) -> list[Proposal]:
        """Begin a round about up to `count` images: the most useful ones, or the first doubtful ones of a list."""
        self._taken = []
        decided, split = {annotation.path for annotation in self._annotations}, self.split
        if self._doubts:
            known = {item.path: item for item in split.items()}
            items = [known[path] for path in self._doubts if path in known and path not in decided]
            self.proposals = as_listed(self._model, items[:count], self._doubts, self._progress)
        else:
            pool = [item for item in split.unlabelled if item.path not in decided]
            seed = self._recipe.seed
            self.proposals = in_order(self._model, pool, split.train, count, seed, self._progress)
        return self.proposals

    def write(self) -> None:
        """Write data.csv, and proposals.csv with the proposals of this round."""
        write_list(self.split, self.out / DATA)
        rows = [
            {
                "path": each.item.path,
                "label": each.label,
                "likeliest": each.likely[0][0],
                "probability": round(each.likely[0][1], 4),
                "why": each.why,
            }
            for each in self.proposals
        ]
        if rows:
            write_csv(self.out / PROPOSALS, rows)

    def annotate(self, annotation: Annotation) -> None:
        """Store the answer about an image of this round.

        Raises AdaptError for an image that does not wait for an answer, for an unknown class, and if a class lost its
        last image.
        """
        proposal = next((each for each in self.left if each.item.path == annotation.path), None)
        if proposal is None:
            raise AdaptError(f"{annotation.path!r} does not wait for an answer")
        annotating.check(annotation, self._begun)
        if proposal.reviewed:
            applied(self._begun, [*self._annotations, annotation])
        self._annotations.append(annotation)
        self._taken.append((proposal, annotation))
        annotating.write(self.out / ANNOTATIONS, self._annotations)

    def undo(self) -> None:
        """Forget the last answer of this round, if there is one."""
        if self._taken:
            self._taken.pop()
            self._annotations.pop()
            annotating.write(self.out / ANNOTATIONS, self._annotations)

    def learn(self) -> LabelRound:
        """Train the run's recipe on all images that have a label now, and return the result of the round.

        Raises the errors of training; the answers are kept.
        """
        split, number = self.split, len(self.rounds) + 1
        while (folder := self._folder(number)).exists():  # one that was interrupted
            number += 1
        for path in (self.out / DATA, folder / LIST):
            write_list(split, path)
        recipe = on_list(self._recipe, folder / LIST, split.turned)
        backbone: Any = self._model.backbone  # of any kind that `load` has an overload for
        result = run_recipe(recipe, folder, progress=self._progress, split=split, backbone=backbone)
        before, self._accuracy = self._accuracy, result.metrics.get("adapted", {}).get("accuracy")
        as_proposed = [annotation.label == proposal.label for proposal, annotation in self._taken]
        outcome = LabelRound(
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
