"""`recommend`: which method to use for a set of images, and how accurate it will be, as text and as files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from adapt import tasks
from adapt.backbones.base import Backbone, DualEncoder, ImageEncoder
from adapt.backbones.load import load_backbone
from adapt.choosing.advice import Advice, advise
from adapt.choosing.candidates import Candidate, Cost, candidates
from adapt.choosing.compare import BASELINE, WITHIN, Compared, Comparison, race, take
from adapt.common.devices import AUTO
from adapt.common.disk import check_free, check_outside, write_csv, write_json, write_text
from adapt.common.errors import AdaptError, missing
from adapt.common.plain import JsonObject, dump
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of, readable_bytes
from adapt.data.bags import has_bags
from adapt.data.decoding.cache import unchanging_images
from adapt.data.split import Split, usual_count
from adapt.evaluation.learning_curve import LearningCurve
from adapt.evaluation.scores import Figure, Scores
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.result import Result
from adapt.training.run_recipe import decodable, listed_data, run_recipe

logger = logging.getLogger("adapt")


MethodRow = JsonObject
"""The results of one method in the comparison, and the command that trains the method, "" for an answer to any image.

The figure by which methods are compared, such as `accuracy`, has its own name, and comes from cross-validation. `error`
is its standard error, `behind` how much worse it is than the best method's, and `behind_error` the standard error of
this difference. `seconds` is what one training took, with all images encoded, and `answer_gflops` what answering one
image takes, in 1e9 operations.
"""


@dataclass(frozen=True)
class Recommendation:
    """The result of comparing methods: a row per method, the chosen method and its training, and advice on the images.

    `rows` describes the compared methods by the `figure` of their task, the best first. `alike` names the methods that
    are as good as the best method within the noise. `about` describes the data and settings of the comparison. `curve`
    is the learning curve on the test images, if there are any, of a method without steps for one class an image.
    `result` is the result of training the chosen method on all images, evaluated on the test images if there are any;
    before the training, `result` is None.
    """

    chosen: str
    figure: Figure
    rows: list[MethodRow]
    alike: list[str]
    left_out: dict[str, str]
    notes: list[str]
    advice: Advice
    about: dict[str, object]
    curve: LearningCurve | None = None
    result: Result | None = None

    @property
    def command(self) -> str:
        """The command that trains the chosen method again; "" if nothing was compared."""
        return next((row["command"] for row in self._chosen), "")

    @property
    def estimate(self) -> tuple[float, float] | None:
        """The chosen method's cross-validated figure and its standard error; None if nothing was compared."""
        return next(((row[self.figure.name], row["error"]) for row in self._chosen), None)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval at 95 % of the estimate (see `Compared.interval`); None if nothing was compared."""
        return next(((row["low"], row["high"]) for row in self._chosen), None)

    @property
    def _chosen(self) -> list[MethodRow]:
        return [row for row in self.rows if row["method"] == self.chosen]

    def trained(self, result: Result, name: str) -> Recommendation:
        """Return the recommendation with the chosen method's training, which says that the method is called `name`.

        The method keeps its name in the comparison if another one there has the new name.
        """
        if any(row["method"] == name for row in self.rows):
            return replace(self, result=result)
        renamed = {self.chosen: name}
        rows = [row | {"method": renamed.get(row["method"], row["method"])} for row in self.rows]
        alike = [renamed.get(each, each) for each in self.alike]
        return replace(self, chosen=name, rows=rows, alike=alike, result=result)

    def as_json(self) -> dict[str, object]:
        """Return the recommendation as a dict, which is the content of recommendation.json."""
        return {
            **self.about,
            "figure": self.figure._asdict(),
            "chosen": self.chosen,
            "alike": self.alike,
            "methods": self.rows,
            "left_out": self.left_out,
            "notes": self.notes,
            "advice": self.advice.lines(),
            "learning_curve": asdict(self.curve) if self.curve else None,
            "test": self.result.metrics.get("adapted") if self.result else None,
        }

    def __str__(self) -> str:
        lines = [f"{note}." for note in self.notes]
        if self.rows:
            lines += [*self._table(), "", *self._choice()]
        if self.result is not None and "adapted" in self.result.metrics:
            tested = self.result.metrics["adapted"]
            value = f"{self.figure.text(tested[self.figure.name])}{' %' * self.figure.share}"
            ends = tested.get("intervals", {}).get(self.figure.name)
            value += f", between {' and '.join(map(self.figure.text, ends))} with 95 % confidence" if ends else ""
            of = "On" if "text" in tested else f"{self.figure.heading} on"
            lines.append(
                f"{of} the {tested['images']} test images, which played no part in the choice: "
                f"{tested.get('text', value)}."
            )
        lines += [f"{self.curve}."] if self.curve else []
        lines += [f"{line}." for line in self.advice.lines()]
        if self.command:
            lines.append(f"To train it again: {self.command}")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Return the lines of a table: one line for each compared method, and one line for all omitted methods."""
        width, figure = max(len(row["method"]) for row in self.rows), self.figure
        beside = "".join(f"{title:>10}" for title in figure.beside.values())
        lines = [
            f"{'':{width}}  {figure.title + ', %' * figure.share:13}{beside}  training, s  answer, GFLOPs  adapter"
        ]
        for row in self.rows:
            mark = "  ← chosen" if row["method"] == self.chosen else ""
            shown = f"{figure.text(row[figure.name]):>5} ± {figure.text(row['error']):>4}"
            others = "".join(f"{row[name]:10.3f}" for name in figure.beside)
            lines.append(
                f"{row['method']:{width}}  {shown:13}{others}  "
                f"{row['seconds']:10.2f}  {row['answer_gflops']:14.3g}  {readable_bytes(row['adapter_bytes'])}{mark}"
            )
        reasons = set(self.left_out.values())
        if reasons:
            reason = f": {reasons.pop()}" if len(reasons) == 1 else " (reasons: left_out in recommendation.json)"
            lines.append(f"left out: {', '.join(self.left_out)}{reason}")
        return lines

    def _choice(self) -> list[str]:
        """Return sentences that explain why the method was chosen, and what to expect."""
        assert self.estimate is not None
        assert self.interval is not None
        trained = [row["method"] for row in self.rows if row["command"]]
        best = trained[0]
        alike = [name for name in self.alike if name not in (self.chosen, best)]
        if len(trained) == 1:
            why = "it is the only method that could be compared."
        elif len(self.alike) == 1:
            why = "it is more than two standard errors better than every other method."
        elif best == self.chosen:
            why = "it is the most accurate."
        else:
            level = next(row["behind"] for row in self.rows if row["method"] == self.chosen) == 0
            why = (
                f"it is as accurate as {best}."
                if level
                else f"{best} is better, but by no more than two standard errors."
            )
        if alike:
            why += f" No more than two standard errors behind the best: {', '.join(alike)}."
        value, low, high = map(self.figure.text, (self.estimate[0], *self.interval))
        where = "" if self.about["tried_classes"] == self.about["classes"] else " of the classes that were compared"
        return [
            f"{self.chosen} was chosen: {why}",
            f"Expect {value} {self.figure.unit} on new images{where}, between {low} and {high} with 95 % confidence: "
            "the cross-validated estimate, and 1.96 of its standard errors to each side.",
        ]

    def write(self, out: Path) -> None:
        """Write recommendation.json, methods.csv, learning_curve.csv and the CSV files of the advice to `out`."""
        write_json(out / "recommendation.json", self.as_json())
        if self.rows:
            write_csv(out / "methods.csv", self.rows)
        if self.curve:
            write_csv(out / "learning_curve.csv", [*map(vars, self.curve.points)])
        self.advice.write(out)

    def report(self, out: Path) -> None:
        """Write report.html, which describes the comparison and the training, to `out` if matplotlib is installed."""
        if find_spec("matplotlib") is None:
            logger.warning("report.html is not written: %s", missing("the report", "matplotlib", "plot"))
            return
        from adapt.protocols.report import report

        write_text(out / "report.html", report([out]))


def rows_of(compared: Sequence[Compared]) -> list[MethodRow]:
    """Return a row of results for each compared method, the best method first."""
    rows: list[MethodRow] = []
    ranked = sorted(compared, key=lambda each: -each.merit)
    for each in ranked:
        behind, behind_error = each.behind(ranked[0])
        figure, figures = each.scores.compared_by, each.scores.figures()
        rows.append(
            {
                "method": each.name,
                figure.name: figures[figure.name],
                "error": each.error,
                "low": each.interval.low,
                "high": each.interval.high,
                "behind": behind,
                "behind_error": behind_error,
                **{name: figures[name] for name in figure.beside},
                "seconds": round(each.seconds, 3),
                "answer_gflops": round(each.answering / 1e9, 6),
                "adapter_bytes": each.size,
                "command": each.candidate.command,
            }
        )
    return rows


FOLDS = "folds"  # the folder with the results of a comparison that is not finished
# trained if nothing can be compared: class names weigh most, and the one image of each class adds to them
UNCOMPARED: tuple[str, dict[str, object]] = ("nearest_mean", {"method.words": 3.0})


def recommend(
    data: str,
    *,
    root: str | None = None,
    columns: str | None = None,
    names: str | None = None,
    shots: int | None = None,
    seed: int = 1,
    backbone: str | Backbone | Sequence[str | Backbone] | None = None,
    device: str = AUTO,
    overrides: Sequence[str] = (),
    folds: int | None = None,
    every: bool = False,
    budget: float | None = None,
    target: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    track: Track = (),
) -> Recommendation:
    """Compare methods on the training images of `data`, and train the chosen method on all training images.

    Methods are compared by cross-validation over `folds` stratified folds, by default the median number of images per
    class, but at most five. If the data names groups of images, a group is never split. Test images are not used for
    the choice. The candidates are zero-shot classification, methods without training steps, methods that train on
    cached features, and CoOp. `every` adds the methods that train through a tower, and a `budget` in seconds adds as
    many of these methods as there is time for. A method is dropped if it is behind the best method so far on the first
    folds (see `Comparison.raced`).

    `backbone` is a name or a loaded backbone, by default the zero-shot recipe's. Of several, each method is compared on
    each, on the same folds. `shots` images per class are used, by default all. `overrides` such as `data.broken=skip`
    apply to all recipes.
    The learning curve of the chosen method, if it takes no steps, is measured on the test images, which choose nothing;
    it says how many more labels a class would reach a `target` accuracy (see `LearningCurve`).
    `out`, a new folder, becomes the run directory of the chosen method. The comparison is also written to `out`, as
    recommendation.json, methods.csv, learning_curve.csv, report.html and a CSV file for each kind of advice, and
    remains there even if the training fails. `resume` continues an interrupted comparison in `out`, with the same
    result as an uninterrupted one but for a `budget`, which begins anew. The trackers in `track` log the training, as
    in `fit`.

    Raises AdaptError for data without training images, with one class or with questions, for fewer than two folds, for
    a `target` outside 0 to 1, for an `out` that exists or is inside the data, and if no method can be trained.
    """
    if target is not None and not 0 < target < 1:
        raise AdaptError(f"target is {target:g}; expected an accuracy between 0 and 1, such as 0.9")
    tracked_by = trackers(track, out)
    one = backbone is None or isinstance(backbone, str | Backbone)
    asked: list[str | Backbone | None] = [backbone] if one else [*backbone] or [None]  # type: ignore[list-item, misc]
    named = {each.describe() if isinstance(each, Backbone) else each: each for each in asked}
    if len(named) < len(asked):
        raise AdaptError(f"backbones are compared that have one name ({', '.join(map(str, named))}): give each once")
    given = {
        "data.root": root,
        "data.columns": columns,
        "data.names": names,
        "backbone": next(iter(named)),
        "seed": seed,
        "device": device,
    }
    changes: dict[str, object] = dict(map(pair, overrides))
    changes |= {key: value for key, value in given.items() if value is not None} | {"data.shots": shots}
    base = read_recipe("zero_shot", list(changes.items()), data)
    changes |= {"backbone": base.backbone, "data.sampling": base.data.sampling}
    with _reserved(out, data, resume) as folder:
        listed_split = listed_data(base, unlabelled=True)
        _check_comparable(listed_split)
        task = tasks.of(listed_split.items())
        encoders = {
            name or base.backbone: _image_encoder(each, base, device).turning(listed_split.turned)
            for name, each in named.items()
        }
        for encoder in encoders.values():
            task.check_backbone(encoder)
        split = decodable(listed_split, base, progress)
        kept = None if folder is None else _folder_of_folds(folder, encoders.values(), split, resume)
        comparison = Comparison(split, encoders, folds or usual_count(split.train), seed, kept)
        slower = every or budget is not None
        has = {*["unlabelled"] * bool(split.unlabelled), *["bags"] * has_bags(split.items())}
        listed = list[Candidate]()
        for name, encoder in encoders.items() if comparison.items else ():
            arguments = data, changes | {"backbone": name}, slower, encoder, task, has
            listed += [each.on(name) if len(encoders) > 1 else each for each in candidates(*arguments)]
        listed.sort(key=lambda each: each.order)
        with ExitStack() as stack:
            stack.enter_context(unchanging_images())
            for encoder in encoders.values():
                stack.enter_context(encoder.unchanging())
            features = {name: _features(split, encoder, progress) for name, encoder in encoders.items()}
            compared, left_out = race(comparison, listed, budget, progress)
            chosen, alike = take(compared) if compared else (None, [])
            curve = None
            if chosen and split.test and task.one_class and chosen.candidate.cost is Cost.NO_STEP:
                with counting_bar("learning curve", progress) as bar:
                    curve = comparison.curve(chosen.candidate, target, bar)
        on = chosen.candidate.recipe.backbone if chosen else base.backbone
        loaded = encoders[on]
        baseline = comparison.baseline(base) if compared else None
        recommendation = Recommendation(
            chosen=chosen.name if chosen else UNCOMPARED[0],
            figure=chosen.scores.compared_by if chosen else Scores.compared_by,
            rows=rows_of([*compared, *filter(None, [baseline])]),
            alike=[each.name for each in alike],
            left_out=left_out,
            notes=_notes(split, comparison, compared, baseline),
            advice=advise(split, features[on], comparison.items, chosen),
            about=_about(split, base, comparison) | {"backbone": on, "backbones": [*encoders]},
            curve=curve,
        )
        if folder is not None:
            recommendation.write(folder)
        if chosen:
            candidate = chosen.candidate
        else:
            usual = changes | (UNCOMPARED[1] if isinstance(loaded, DualEncoder) else {})
            candidate = Candidate(UNCOMPARED[0], read_recipe(UNCOMPARED[0], [*usual.items()], data), Cost.NO_STEP)
        goes_on = folder is not None and (folder / "recipe.yaml").is_file()
        result = run_recipe(candidate.recipe, folder, goes_on, progress, split, loaded, tracked_by)
        recommendation = recommendation.trained(result, candidate.called(result))
        if folder is not None:
            recommendation.write(folder)
            recommendation.report(folder)
            shutil.rmtree(folder / FOLDS, ignore_errors=True)
    return recommendation


def _folder_of_folds(folder: Path, encoders: Iterable[ImageEncoder], split: Split, resume: bool) -> Path:
    """Return the folder of finished folds. Raises AdaptError if those to `resume` are of other data or backbones."""
    told = "\n".join([dump(split.identity), *(encoder.content() for encoder in encoders)])
    kept = folder / FOLDS / blake2b(told.encode(), digest_size=16).hexdigest()
    if resume and not kept.exists() and any(kept.parent.iterdir()):
        raise AdaptError(f"{folder} compares methods on other data, or on another backbone: choose another --out")
    return kept


@contextmanager
def _reserved(out: str | Path | None, data: str, resume: bool) -> Iterator[Path | None]:
    """Create the folder `out` for the `with` block, and remove the folder afterwards if nothing was written to it.

    Raises AdaptError if `out` exists, cannot be created, or is inside the data; or to `resume`, if it was not begun.
    """
    check_alone()
    begun = out is not None and Path(out, FOLDS).is_dir()
    if resume and not begun:
        raise AdaptError(f"{out} has no interrupted comparison to resume: give its --out, or leave out --resume")
    if out is None:
        yield None
        return
    out = Path(out)
    check_outside(out, data, f"the data folder {data}")
    if not resume:
        check_free(out, "folder, or continue an interrupted comparison with --resume" if begun else "folder")
    made = [each for each in (out / FOLDS, out, *out.parents) if not each.exists()]
    try:
        (out / FOLDS).mkdir(parents=True, exist_ok=resume)
    except OSError as error:
        raise AdaptError(f"cannot create {out}: {error.strerror or error}; choose another --out") from error
    try:
        yield out
    finally:
        with suppress(OSError):  # not empty
            for each in made:
                each.rmdir()


def _check_comparable(split: Split) -> None:
    """Raise AdaptError if methods cannot be compared on the data: no images, another task, or nothing to tell apart."""
    if not split.train[0].paths:
        raise AdaptError(f"{split.name} contains texts, but methods are compared on images: train `close` on texts")
    if reason := tasks.of(split.items()).comparable:
        raise AdaptError(f"{split.name}: {reason}")
    if why := split.task.nothing_to_learn(split.train, split.class_names):
        raise AdaptError(f"{split.name} has {why}")
    if not split.task.one_class and len({item.kept_with for item in split.train}) < 2:
        raise AdaptError(
            f"{split.name} has one training image, or one group of them: give two, so that one is held out"
        )


def _image_encoder(given: str | Backbone | None, recipe: Recipe, device: str) -> ImageEncoder:
    """Return or load the backbone given, or else the recipe's. Raises AdaptError if it does not encode images alone."""
    name = given or recipe.backbone
    backbone = name if isinstance(name, Backbone) else load_backbone(name, device, recipe.quantize)
    if isinstance(backbone, ImageEncoder):
        return backbone
    raise AdaptError(
        f"{backbone.describe()} is a {backbone.kind}, but methods are only compared on a dual encoder such as CLIP "
        "or SigLIP, on a vision encoder such as DINOv2, or on the eyes of a native vision-language model, such as "
        "last:mini-vlm: give another --backbone, and images without questions"
    )


def _about(split: Split, recipe: Recipe, comparison: Comparison) -> dict[str, object]:
    """Return a dict that describes a comparison's inputs: data set, backbone, folds, numbers of images and classes."""
    return {
        "data": recipe.data.source,
        "backbone": recipe.backbone,
        "shots": recipe.data.shots,
        "seed": recipe.seed,
        "folds": comparison.count,
        "train_images": len(split.train),
        "tried_images": len(comparison.items),
        "classes": len(split.class_names),
        "tried_classes": len(
            {item.stratum for item in comparison.items} if split.task.one_class else split.class_names
        ),
    }


def _features(split: Split, backbone: ImageEncoder, progress: bool) -> dict[str, Tensor]:
    """Return the unit-length features `(n, e)` of the images in train, val and test, and cache the features."""
    model = unadapted(backbone, split.class_names)
    assert isinstance(model, ImageModel)
    with counting_bar("encoding", progress) as bar:
        parts = {"train": split.train, "val": split.val, "test": split.test}
        return {part: item_features(model, items, workers=2, progress=bar) for part, items in parts.items() if items}


def _notes(split: Split, comparison: Comparison, compared: Sequence[Compared], baseline: Compared | None) -> list[str]:
    """Return remarks on a comparison: whether class names or images help, and which classes have too few images."""
    if not comparison.items:
        return [
            "Every class has only one training image (or one group of images), so none can be held out: which method "
            "is best here, and how accurate it is, cannot be known. Comparing methods takes at least two training "
            f"images a class, and works much better with eight. {UNCOMPARED[0]} is used instead"
        ]
    if not split.task.one_class:
        if baseline is None:
            return []
        ahead, error = baseline.behind(max(compared, key=lambda each: each.merit))
        unseeing = (
            f"No method is more than two standard errors better than the {baseline.candidate.name}, which looks at no "
            "image: this backbone may see nothing of what is to be predicted"
        )
        return [] if ahead > WITHIN * error else [unseeing]
    untried = sorted({item.stratum for item in split.train} - {item.stratum for item in comparison.items})
    notes = [_on_class_names(each) for each in compared if each.candidate.recipe.method["name"] == BASELINE]
    if untried:
        notes.append(
            f"The estimates leave out {first_of(untried, 3)}: with only one training image (or one group of images) "
            "in a class, none can be held out"
        )
    return notes


def _on_class_names(zero_shot: Compared) -> str:
    """Return a remark on whether class names help with this backbone, by comparing zero-shot accuracy with chance."""
    chance = 1 / zero_shot.answers.shape[1]
    figures = f"zero-shot accuracy {100 * zero_shot.merit:.1f} %, chance {100 * chance:.1f} %"
    if zero_shot.merit - chance < chance * (1 - chance):  # for many classes twice chance, for two 75 %
        return f"Class names help little with this backbone ({figures}): the training images have to decide"
    return f"Class names help here ({figures}): a method that uses them should win"
