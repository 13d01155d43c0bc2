"""The labelling of images by a person, kept in a folder: proposals, answers, and training after every few answers.

The answers are in a file that grows with each of them.
"""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from pydantic import BaseModel

from adapt.backbones.base import Backbone
from adapt.common.devices import AUTO
from adapt.common.disk import check_outside, locked, write_csv, write_json, write_text
from adapt.common.errors import AdaptError, nearest
from adapt.data.item import Item
from adapt.data.readers.lines import csv_rows
from adapt.data.split import PARTS, Split
from adapt.evaluation import stored
from adapt.evaluation.evaluate import evaluate
from adapt.labelling.proposals import Proposal, as_listed, gathered, in_order, of_run, present
from adapt.loading import load
from adapt.models.image_model import ImageModel
from adapt.models.wrap import Model
from adapt.training.extending import LIST, RECIPE, on_list, recipe_of, write_list
from adapt.training.run_recipe import run_recipe

logger = logging.getLogger("adapt")
BEGUN, DATA, ANNOTATIONS = "labelling.json", "data.csv", "annotations.csv"
PROPOSALS, ROUNDS = "proposals.csv", "rounds.json"
Action = Literal["label", "drop", "skip"]


@dataclass(frozen=True)
class Annotation:
    """An answer about an image: its `label`, to drop it from the data, or to leave it as it is.

    `proposed` is the label that was proposed.
    """

    path: str
    action: Action
    label: str = ""
    proposed: str = ""

    @property
    def as_proposed(self) -> bool:
        """Whether the proposed label was the right one."""
        return self.action == "label" and self.label == self.proposed


def check_annotation(annotation: Annotation, split: Split) -> None:
    """Raise AdaptError for an action or a class that does not exist."""
    if annotation.action not in get_args(Action):
        raise AdaptError(f"the action {annotation.action!r} is unknown; {nearest(annotation.action, get_args(Action))}")
    if annotation.action == "label" and annotation.label not in split.class_names:
        raise AdaptError(f"no class is called {annotation.label!r}; {nearest(annotation.label, split.class_names)}")


def applied(split: Split, annotations: Iterable[Annotation]) -> Split:
    """Return `split` after the annotations: unlabelled images that got a label are training images.

    Raises AdaptError if a class loses its last training image.
    """
    last = {annotation.path: annotation for annotation in annotations if annotation.action != "skip"}
    dropped = {path for path, annotation in last.items() if annotation.action == "drop"}
    parts: dict[str, tuple[Item, ...]] = {
        part: tuple(_annotated(item, last) for item in getattr(split, part) if item.path not in dropped)
        for part in PARTS
    }
    labelled = tuple(item for item in parts["unlabelled"] if item.class_names)
    parts["unlabelled"] = tuple(item for item in parts["unlabelled"] if not item.class_names)
    parts["train"] += labelled
    return replace(split, **parts)  # type: ignore[arg-type]  # the names are those of parts


def _annotated(item: Item, last: dict[str, Annotation]) -> Item:
    annotation = last.get(item.path)
    if annotation is None or item.class_names == (annotation.label,):
        return item
    return item.labelled(Item.of(path=item.path, label=annotation.label).label)


def read_annotations(path: Path) -> list[Annotation]:
    """Return the annotations in the file at `path`, or none if it does not exist. Raises AdaptError for a bad file."""
    if not path.exists():
        return []
    _, rows = csv_rows(path)
    try:
        return [Annotation(row["path"], cast("Action", row["action"]), row["label"], row["proposed"]) for row in rows]
    except KeyError as error:
        raise AdaptError(
            f"CSV {str(path)!r} has no column {error}; expected path, action, label and proposed"
        ) from None


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the rows of a list to the file at `path`, or remove the file if there are none."""
    if rows:
        write_csv(path, rows)
    else:
        path.unlink(missing_ok=True)


def filled_in(path: Path, column: str, split: Split) -> list[Annotation]:
    """Return the labels in a `column` of the list at `path`, if it exists, for unlabelled images of `split`.

    Raises AdaptError for an unknown class.
    """
    if not path.exists():
        return []
    unlabelled = {item.path for item in split.unlabelled}
    _, rows = csv_rows(path)
    labels = {f"/{row.get('path', '').lstrip('/')}": row.get(column, "") for row in rows}
    filled = {image: label for image, label in labels.items() if label and image in unlabelled}
    annotations = [Annotation(image, "label", label) for image, label in filled.items()]
    for annotation in annotations:
        check_annotation(annotation, split)
    return annotations


class Begun(BaseModel):
    """The run and the sources of images that a folder of answers belongs to."""

    run: str
    sources: list[str]

    @classmethod
    def of(cls, out: Path, run: Path, sources: Sequence[Path]) -> Begun:
        """Return what the folder `out` belongs to, with the sources of earlier commands.

        Sources that are gone are left out with a warning. Raises AdaptError if `out` has answers about another run.
        """
        own = cls(run=str(run.absolute()), sources=[str(source.absolute()) for source in sources])
        if not (out / BEGUN).exists():
            return own
        before = cls(**stored.read(out / BEGUN, cls, "description of a labelling"))
        if before.run != own.run and (out / ANNOTATIONS).exists():
            raise AdaptError(
                f"{out} has answers about the run {before.run}, not {own.run}: choose another --out, or correct the "
                f"run in {out / BEGUN} if it was moved"
            )
        earlier = [source for source in before.sources if Path(source).exists()]
        for source in before.sources:
            if source not in earlier:
                logger.warning("%s, of an earlier command, is gone: its images are left out", source)
        return cls(run=own.run, sources=list(dict.fromkeys([*earlier, *own.sources])))


SPARE = 2  # times as many images are proposed as answers are wanted, since some are skipped


class LabelRound(BaseModel):
    """The result of a round of answers: how many were given, how many were as proposed, and what training gave.

    `before` and `accuracy` are those of the test images, in [0, 1], before and after the round, and `interval` is that
    of `accuracy` at 95 %; None without any.
    `known` is the number of all annotations, skipped images included, up to this round.
    """

    round: int
    answers: int
    as_proposed: int
    train_images: int
    before: float | None
    accuracy: float | None
    interval: tuple[float, float] | None = None
    known: int


class Labelling:
    """Proposed labels of images, a person's answers, and training on the answers, all of it kept in a folder.

    `run` is the folder of a run, whose adapter proposes labels. `sources` are folders or lists of further images, and
    lists of doubtful images of the run, which come first. `data` is the data of the run with these images, before any
    answer. The folder `out` gets annotations.csv after each answer, and data.csv (all images with their labels),
    rounds.json and the run of the round after each round. If `out` has answers already, they are taken, with the
    sources that they are about. `out` is locked until `close` or the process ends.

    Raises AdaptError if the run has another task than classification or another kind of backbone than an encoder of
    images, if there is no image to ask about, and if `out` is in use, is of another run, or lies in the run's data.
    """

    def __init__(
        self, run: Path, sources: Sequence[Path], out: Path, device: str = AUTO, progress: bool = True
    ) -> None:
        self.out, self._progress, self._recipe = out, progress, recipe_of(run)
        check_outside(out, self._recipe.data.source, "the run's data")
        own = of_run(self._recipe, progress)
        self._lock = locked(out, "labelling")
        begun = Begun.of(out, run, sources)
        self.data, self._doubts = gathered(own, list(map(Path, begun.sources)), progress)
        rounds = stored.read(out / ROUNDS, list[LabelRound], "rounds") if (out / ROUNDS).exists() else []
        self.rounds = [LabelRound(**each) for each in rounds]
        latest = self._folder(self.rounds[-1].round) if rounds else run
        self._model = self._loaded(latest, load(latest, device=device))
        metrics = stored.read(latest / "metrics.json", stored.Metrics, "metrics")
        self._accuracy: float | None = metrics.get("adapted", {}).get("accuracy")
        self._annotations = read_annotations(out / ANNOTATIONS)
        self._tested = applied(self.data, self._annotations[: self._known]).test
        for name, column in ((DATA, "label"), (PROPOSALS, "answer")):
            self._annotations += filled_in(out / name, column, self.split)
        self._store()
        self._wanted = 0
        self.proposals: list[Proposal] = []
        """The proposals of this round."""
        write_json(out / BEGUN, begun.model_dump())

    def close(self) -> None:
        """Release the lock on the folder, so that another process may use it."""
        self._lock.release()

    def _folder(self, number: int) -> Path:
        """Return the folder of the run of a round."""
        return self.out / f"round-{number}"

    def _loaded(self, run: Path, model: Model) -> ImageModel:
        if not isinstance(model, ImageModel) or tuple(model.class_names) != self.data.class_names:
            raise AdaptError(
                f"{run} has an adapter of a {model.backbone.kind} with {len(model.class_names)} classes; expected one "
                f"of an encoder of images with the {len(self.data.class_names)} classes of its data"
            )
        return model.eval()

    @property
    def split(self) -> Split:
        """The data with all answers so far."""
        return applied(self.data, self._annotations)

    @property
    def _known(self) -> int:
        """The number of annotations that the last round was trained on."""
        return self.rounds[-1].known if self.rounds else 0

    @property
    def answers(self) -> int:
        """The number of labelled and dropped images since the last round."""
        return sum(annotation.action != "skip" for annotation in self._annotations[self._known :])

    @property
    def asked(self) -> int:
        """The number of answers in this round, once it is full."""
        return min(self._wanted, self.answers + len(self._open))

    @property
    def _open(self) -> list[Proposal]:
        decided = {annotation.path for annotation in self._annotations}
        return [each for each in self.proposals if each.item.path not in decided]

    @property
    def left(self) -> list[Proposal]:
        """The proposals of this round that wait for an answer."""
        return self._open[: max(0, self._wanted - self.answers)]

    @property
    def command(self) -> str:
        """A command that trains the run's recipe on the data with all answers."""
        return shlex.join(["adapt", "train", str(self.out / RECIPE), "--out", f"{self.out}-trained"])

    def propose(self, count: int) -> list[Proposal]:
        """Begin a round of `count` answers: doubtful images in the order of their lists, then the most useful ones.

        More images than `count` are proposed, since some may be skipped. Answers that no round was trained on count.
        """
        self.proposals, self._wanted = [], count
        self._fill()
        return self.left

    def _fill(self) -> None:
        """Add further proposals to those of this round; images that are gone are left out."""
        split, count = self.split, SPARE * self._wanted
        asked = {annotation.path for annotation in self._annotations} | {each.item.path for each in self.proposals}
        known = {item.path: item for item in split.items()}
        doubtful = [known[path] for path in self._doubts if path in known and path not in asked]
        new = as_listed(self._model, present(doubtful)[:count], self._doubts, self._progress)
        if len(new) < count:
            pool = present([item for item in split.unlabelled if item.path not in asked])
            left, seed = count - len(new), self._recipe.seed
            new += in_order(self._model, pool, split.train, left, seed, self._progress)
        self.proposals += new

    def write(self) -> None:
        """Write data.csv and recipe.yaml, which train on all answers, and proposals.csv, the images of this round."""
        write_list(self.split, self.out / DATA)
        write_text(self.out / RECIPE, on_list(self._recipe, self.out / DATA, self.data.turned).to_yaml())
        rows = [
            {
                "path": each.item.path,
                "label": each.label,
                "likeliest": each.likely[0][0],
                "probability": round(each.likely[0][1], 4),
                "why": each.why,
                "answer": "",  # to be filled in
            }
            for each in self.left
        ]
        write_rows(self.out / PROPOSALS, rows)

    def _store(self) -> None:
        write_rows(self.out / ANNOTATIONS, list(map(asdict, self._annotations)))

    def annotate(self, annotation: Annotation) -> None:
        """Store the answer about an image of this round.

        Raises AdaptError for an image that does not wait for an answer, for an unknown class, and if a class lost its
        last image.
        """
        proposal = next((each for each in self._open if each.item.path == annotation.path), None)
        if proposal is None:
            raise AdaptError(f"{annotation.path!r} does not wait for an answer")
        check_annotation(annotation, self.data)
        if proposal.reviewed:
            applied(self.data, [*self._annotations, annotation])
        self._annotations.append(replace(annotation, proposed=proposal.label))
        self._store()
        if not self.left and self.answers < self._wanted:  # many were skipped
            self._fill()

    def undo(self) -> None:
        """Forget the last answer since the last round, if there is one, and propose its image again."""
        if len(self._annotations) == self._known:
            return
        last = self._annotations.pop()
        write_list(self.split, self.out / DATA)  # first, as labels in this list count as filled in by hand
        self._store()
        if not any(each.item.path == last.path for each in self.proposals):  # of an earlier process
            split = self.split
            items = [item for item in (*split.items(), *split.unlabelled) if item.path == last.path]
            self.proposals = as_listed(self._model, items, self._doubts, self._progress) + self.proposals

    def learn(self) -> LabelRound:
        """Train the run's recipe on all images that have a label now, and return the result of the round.

        Raises AdaptError without new answers, and the errors of training; the answers are kept.
        """
        if not self.answers:
            raise AdaptError("there are no new answers to train on: label or drop an image first")
        split, number, since = self.split, len(self.rounds) + 1, self._annotations[self._known :]
        split = replace(split, unlabelled=tuple(present(split.unlabelled)))
        while (folder := self._folder(number)).exists():  # one that was killed
            number += 1
        self.write()
        write_list(split, folder / LIST)
        before = self._accuracy
        if split.test != self._tested:  # a review changed them
            before = evaluate(self._model, split.test).accuracy if split.test else None
        recipe = on_list(self._recipe, folder / LIST, split.turned)
        backbone: Backbone = self._model.backbone
        try:
            result = run_recipe(recipe, folder, progress=self._progress, split=split, backbone=backbone)
        except BaseException:
            shutil.rmtree(folder)
            raise
        measured = result.metrics.get("adapted", {})
        self._accuracy, self._tested = measured.get("accuracy"), split.test
        outcome = LabelRound(
            round=number,
            answers=self.answers,
            as_proposed=sum(annotation.as_proposed for annotation in since),
            train_images=len(split.train),
            before=before,
            accuracy=self._accuracy,
            interval=measured["intervals"]["accuracy"] if measured else None,
            known=len(self._annotations),
        )
        self.rounds.append(outcome)
        write_json(self.out / ROUNDS, [each.model_dump() for each in self.rounds])
        self._model = self._loaded(folder, load(folder, backbone))
        return outcome
