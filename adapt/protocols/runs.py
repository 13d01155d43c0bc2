"""One run of a protocol: a recipe trained in its own directory, and its adapter tested on other data.

Nothing is computed twice: a finished run is read, an interrupted run is continued, and the figures on other data are
stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapt import tasks
from adapt.backbones import families
from adapt.common.devices import AUTO
from adapt.common.disk import write_json
from adapt.common.errors import AdaptError, about
from adapt.common.plain import JsonObject, dump
from adapt.data.check import without_broken
from adapt.data.item import items_id
from adapt.data.split import Split
from adapt.evaluation import stored
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores, main_figure
from adapt.loading import load
from adapt.methods.base.traits import DrawsMaps, has_trait
from adapt.models.answer import can_answer_together
from adapt.models.base import Adapted, is_native
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.models.wrap import Model
from adapt.recipe import DataSection, Recipe, build_recipe
from adapt.recipe.file import read_file
from adapt.tracking import Track
from adapt.training.run_recipe import decodable, listed_data, run_recipe
from adapt.training.start import check_can_start

RETRIES = 2  # of a run whose process dies
DATA, TARGETS = "data.json", "targets.json"  # what a run learned from and was tested on, and its figures on other data
# hashes of test images, and of their labels in words, in a row, and the beginnings of such names for targets
TEST_SET, LABELS = "test_set", "labels"
Row = JsonObject  # run, shots, seed, train_set and, in [0, 1], figures by name


@dataclass(frozen=True)
class Target:
    """A test set other than the recipe's test set, to be classified by a trained adapter among its own class names."""

    name: str
    data: DataSection


@dataclass(frozen=True)
class PlannedRun:
    """A planned run, which trains `recipe` in the folder `name`, and tests on the recipe's test images and `targets`.

    `own` is the name of the accuracy on the recipe's test images. `setting` is the run's setting in a sweep, or the
    left-out domain. A run with `after` continues from the adapter of the run `after`, and includes that run's figures.
    `beside` are figures of the recipe's test images that its row has by their own names.
    """

    name: str
    recipe: Recipe
    own: str = "test"
    targets: tuple[Target, ...] = ()
    setting: str | None = None
    after: PlannedRun | None = None
    beside: tuple[str, ...] = ()


def check(runs: Sequence[PlannedRun]) -> None:
    """Raise AdaptError for problems in `runs` that would appear only after training, such as missing test images."""
    measured: dict[str, DataSection] = {}
    planned = list(_with_those_before(runs))
    for backbone in {run.recipe.backbone for run in planned if run.targets}:  # once: a configuration may be fetched
        if not families.of(backbone).reads_texts_of(backbone):
            raise AdaptError(
                f"{backbone} knows classes by their training images, but this protocol tests on other data or classes: "
                "choose a dual encoder, such as a CLIP"
            )
    for run in planned:
        recipe = run.recipe
        method = recipe.new_method()
        if run.targets and method.per_class:
            raise AdaptError(
                f"{recipe.method['name']} learns tensors for each of its classes and cannot classify new classes, "
                "which this protocol tests: choose another method"
            )
        if run.beside and not has_trait(method, DrawsMaps):
            raise AdaptError(
                f"{recipe.method['name']} draws no maps, which this protocol measures: choose a method such as "
                "patch_memory"
            )
        if run.beside and not any(item.label.files for item in _images(recipe.data).test):
            raise AdaptError(f"no test image of {recipe.data.source!r} has a mask: add masks of its defects")
        if run.after is not None:
            check_can_start(method, recipe.train is not None, run.after.name)
        for target in run.targets:
            theirs, own = _images(target.data).task, _images(recipe.data).task
            if theirs is not own:
                raise AdaptError(
                    f"{target.name!r} has {theirs.title}, but {recipe.data.source!r} has {own.title}: give data of the "
                    "same task"
                )
        measured |= {run.own: recipe.data} | {target.name: target.data for target in run.targets}
    for name, data in measured.items():  # the runs of a protocol share them
        split = _images(data)
        if not split.task.scored:
            raise AdaptError(f"{split.name} has no labels, by which runs could be compared: give labels, or use train")
        one = split.task.nothing_to_learn((), split.class_names)
        if one and data.classes == "all":  # of many parts of the classes, a last one may have a single class
            raise AdaptError(f"{split.name} has {one}, so {name!r} cannot be measured: give data of several classes")
        if not split.test:
            raise AdaptError(f"{split.name} has no test images to measure {name!r} on: add test images")


def _with_those_before(runs: Iterable[PlannedRun]) -> Iterator[PlannedRun]:
    for run in runs:
        if run.after is not None:
            yield from _with_those_before([run.after])
        yield run


def measure(run: PlannedRun, out: Path, track: Track = ()) -> Row:
    """Train and test a run, and return a row with accuracies in [0, 1] under `run.own` and the targets' names.

    The ends of their intervals at 95 % have the prefixes `low_` and `high_`, zero-shot accuracies have the prefix
    `zero_shot_`, and accuracies of answers about the whole test set together have the prefix `together_`. If accuracy
    is not the main metric of the task (but for example mean average precision), the row contains the main metric
    instead, with the name of the metric under `figure`.
    Raises AdaptError, naming the run, if the folder contains a run of another recipe.
    """
    before: Row = {}
    if run.after is not None:
        before = measure(run.after, out, track)
        start = str(out / run.after.name / "adapter.safetensors")
        run = replace(run, recipe=run.recipe.model_copy(update={"start": start}))
    with about(f"run {run.name}"):
        return before | _measure_one(run, out, track)


def _measure_one(run: PlannedRun, out: Path, track: Track) -> Row:
    folder = out / run.name
    started = folder / "recipe.yaml"
    recipe = recipe_in(started) if started.is_file() else run.recipe
    finished = (folder / "metrics.json").exists()
    if recipe is None or not alike(recipe, run.recipe, run.after is not None) or (finished and not started.exists()):
        raise AdaptError(f"{folder} holds a run of another recipe: choose another --out")
    here = recipe.model_copy(update={"device": run.recipe.device})
    split, known = listed_data(here), folder / DATA
    identity = split.identity
    if run.after is not None and (earlier := out / run.after.name / "adapter.safetensors").is_file():
        identity |= {"start": hashlib.sha256(earlier.read_bytes()).hexdigest()}
    if not finished:
        whole = decodable(split, here, progress=False)
        run_recipe(here, folder, resume=started.is_file(), progress=False, split=whole, track=track)
        write_json(known, identity)
    elif known.is_file():
        before = stored.read(known, dict[str, object], "data of a finished run")
        if changed := [key for key, value in before.items() if value != identity.get(key, value)]:
            data = f"images, labels or names of classes of {recipe.data.source!r} have changed"
            what = "the adapter that it goes on from was trained again" if changed == ["start"] else data
            raise AdaptError(
                f"{what} since the run in {folder}: delete that folder to train again, or choose another --out"
            )
    kind = stored.Measured if run.recipe.data.classes == "all" else stored.Metrics
    metrics = stored.read(folder / "metrics.json", kind, "scores of a finished run")
    if "adapted" not in metrics:  # of a single class, each answer is right
        metrics |= {"adapted": {"accuracy": 1.0}, "zero_shot": {"accuracy": 1.0}}
    row: Row = {"run": run.name, "shots": run.recipe.data.shots, "seed": run.recipe.seed}
    figure, title = main_figure(metrics["adapted"])
    if figure != Scores.main:
        row |= {"figure": title}
    if metrics.get("baseline", Adapted.baseline) != Adapted.baseline:
        row |= {"baseline": metrics["baseline"]}
    if run.setting is not None:
        row |= {"setting": run.setting, "val": metrics.get("val", {}).get(figure)}
    parts = ("adapted", "zero_shot", "together")
    own = {part: metrics[part][figure] for part in parts if part in metrics}
    own["interval"] = metrics["adapted"].get("intervals", {}).get(figure)
    for name, figures in ({run.own: own} | _on_targets(run, folder)).items():
        row |= {name: figures["adapted"], f"zero_shot_{name}": figures["zero_shot"]}
        if ends := figures.get("interval"):  # over other test images, not over seeds
            row |= {f"low_{name}": ends[0], f"high_{name}": ends[1]}
        row |= {f"together_{name}": figures["together"]} if "together" in figures else {}
        if name != run.own:
            row |= {f"{TEST_SET}_{name}": figures["test_set"], f"{LABELS}_{name}": figures["labels"]}
    row |= {name: metrics["adapted"][name] for name in run.beside}
    return row | {"train_set": metrics["train_set"], TEST_SET: metrics.get("test_set"), LABELS: _in_words(split)}


def recipe_in(file: Path, settings: JsonObject | None = None) -> Recipe | None:
    """Return the recipe in a file, or of `settings` from it, or None if this version of adapt cannot read it."""
    try:
        return build_recipe(read_file(file, str(file)).settings if settings is None else settings, str(file))
    except AdaptError:
        return None


def alike(one: Recipe, other: Recipe, any_start: bool = False) -> bool:
    """Return whether two recipes are equal but for `device`, and for `start` too with `any_start`."""
    free = {"device": AUTO} | ({"start": None} if any_start else {})
    return one.model_copy(update=free) == other.model_copy(update=free)


def is_finished(run: PlannedRun, out: Path) -> bool:
    """Return whether a run has been trained and measured in the folder `out`, so that only files are left to read."""
    folder = out / run.name
    if not (folder / "metrics.json").is_file() or (run.after is not None and not is_finished(run.after, out)):
        return False
    known = _known_targets(folder)
    return all(known.get(target.name, {}).items() >= _identity(target).items() for target in run.targets)


def _known_targets(folder: Path) -> dict[str, dict[str, object]]:
    """Return the figures in a run's targets.json by target, or none if there is no such file."""
    file = folder / TARGETS
    known: dict[str, dict[str, object]] = {}
    return stored.read(file, stored.TargetFigures, "figures of targets") if file.exists() else known


def _identity(target: Target) -> dict[str, object]:
    """Return what figures of a target data set are kept under: its settings, images, labels and names of classes."""
    split, data = _images(target.data), target.data.model_dump(mode="json")
    hashes = {"test_set": items_id(split.test), "labels": _in_words(split)}
    return {"data": data, **hashes, "class_names": [*split.class_names]}


def _in_words(split: Split) -> str:
    """Return a hash of the test images' labels in words: `items_id` knows classes by the order in which they occur."""
    return hashlib.sha256(dump([item.answer for item in split.test]).encode()).hexdigest()[:16]


def _on_targets(run: PlannedRun, folder: Path) -> dict[str, dict[str, object]]:
    """Return a run's metrics on each target data set; missing metrics are measured and stored in targets.json."""
    known = _known_targets(folder)
    model: Model | None = None
    for target in run.targets:
        identity = _identity(target)
        if not known.get(target.name, {}).items() >= identity.items():
            if model is None:
                model = load(folder / "adapter.safetensors", device=run.recipe.device)
            known[target.name] = identity | _measured(model, _images(target.data), target.data, run.recipe)
            write_json(folder / TARGETS, known)
    return {target.name: known[target.name] for target in run.targets}


def _measured(model: Model, split: Split, data: DataSection, recipe: Recipe) -> dict[str, object]:
    split = without_broken(split, data.broken)
    workers = recipe.train.workers if recipe.train is not None else 2
    task = tasks.of(split.items())
    names = task.class_names_for(model.backbone.kind, split.class_names)
    adapted = model.with_classes(names) if names and (isinstance(model, ImageModel) or is_native(model)) else model
    baseline = unadapted(model.backbone, names, data.template, fast=recipe.fast)
    task.fit_answers(baseline, split.train or split.test, Inference(workers, recipe.cache))
    answers = {"adapted": (adapted, False), "zero_shot": (baseline, False)}
    if can_answer_together(adapted, split.test):
        answers["together"] = (adapted, True)
    scores = {
        name: evaluate(each, split.test, workers=workers, cache=recipe.cache, together=together).reported()
        for name, (each, together) in answers.items()
    }
    figure, _ = main_figure(scores["adapted"])
    told = scores["adapted"]
    beside = {"images": told["images"], "interval": told["intervals"].get(figure)}
    return {name: each[figure] for name, each in scores.items()} | beside


def _images(data: DataSection) -> Split:
    return data.load().only(data.classes)
